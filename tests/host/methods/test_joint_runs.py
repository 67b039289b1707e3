"""Runs on flow models that StyleID refuses before their first step, or says something of."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_model_advanced import ModelSamplingFlux
from torch import Tensor

from semblance.attention.engine.scope import ScheduleWindow, Scope
from semblance.attention.functional.inversion import MIDPOINT
from semblance.attention.methods.styleid.joint import JointStyleID
from semblance.attention.references.trajectory import ReferenceTrajectory
from semblance.host.binding import wrappers
from semblance.host.binding.model import add_patch, map_transformer
from semblance.host.conditioning import Text
from semblance.host.inversion.flow import flow_sampler
from semblance.host.inversion.runs import as_latent, falling_levels
from semblance.host.inversion.solver import invert
from semblance.host.inversion.styleid_start import check_pair
from semblance.host.latents import picture_latents
from semblance.tests.support.studio import record_calls, relative_error
from semblance.tests.support.transformers import TRANSFORMERS
from semblance.tests.tiny_models import sampler_custom

FLUX = TRANSFORMERS["flux"]
TEXT = FLUX.conditioning()


def inverted(model: ModelPatcher, images: int = 2, steps: int = 3) -> ReferenceTrajectory:
    pictures = picture_latents(FLUX.latent(images, 8, 12, seed=5)) * 2.7
    return invert(model, pictures, steps, MIDPOINT, Text(TEXT, TEXT)).trajectory


@pytest.fixture(scope="module")
def flux() -> ModelPatcher:
    return FLUX.model()


@pytest.fixture(scope="module")
def pair(flux: ModelPatcher) -> ReferenceTrajectory:
    return inverted(flux)


def painted(
    model: ModelPatcher, pair: ReferenceTrajectory, window: ScheduleWindow | None = None, **settings: Any
) -> ModelPatcher:
    scope = Scope(map_transformer(model).preset("all"), window or ScheduleWindow())
    return add_patch(model, JointStyleID(pair.select([0]), pair.select([1]), scope, **settings))


def sampled(
    model: ModelPatcher,
    pair: ReferenceTrajectory,
    sigmas: Tensor | None = None,
    text: Any = TEXT,
    latent: Tensor | None = None,
    **settings: Any,
) -> Tensor:
    start = as_latent(model, pair.select([0]).latents[-1]) if latent is None else latent
    levels = falling_levels(pair) if sigmas is None else sigmas
    return sampler_custom(model, text, text, {"samples": start}, levels, **({"sampler": flow_sampler()} | settings))


def test_a_prompt_for_an_area_is_refused_before_the_first_step(flux: ModelPatcher, pair: ReferenceTrajectory) -> None:
    counted, calls = record_calls(flux)
    area = FLUX.conditioning(area=(4, 6, 0, 0), strength=1.0)
    with pytest.raises(ValueError, match=r"crop of the picture.*\(content, style\) cannot follow. Remove Conditioning"):
        sampled(painted(counted, pair), pair, text=area)
    assert calls == []
    assert torch.isfinite(sampled(painted(flux, pair, strength=0.0), pair, text=area)).all()


@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral"])
@pytest.mark.parametrize("adds_noise", [False, True])
def test_every_stock_sampler_is_sent_to_the_one_that_serves(
    flux: ModelPatcher, pair: ReferenceTrajectory, sampler: str, adds_noise: bool
) -> None:
    """Sent to euler, or told to add no noise, a user would only meet the next refusal."""
    with pytest.raises(ValueError, match="Sample by SamplerCustom with the sampler of the StyleID node"):
        sampled(painted(flux, pair), pair, sampler=sampler, add_noise=adds_noise)


def test_levels_that_begin_below_the_top_are_spoken_of(
    flux: ModelPatcher, pair: ReferenceTrajectory, caplog: pytest.LogCaptureFixture
) -> None:
    """With the noise as its latent such a run is wrong; with the latent of the run before it is right."""
    model, levels = painted(flux, pair), falling_levels(pair)
    whole = sampled(model, pair)
    half = sampled(model, pair, levels[:2])
    assert "is taken for a state" not in caplog.text
    rest = sampled(model, pair, levels[1:], latent=half)
    assert f"The latent is taken for a state at noise level {levels[1].item():.2g}." in caplog.text
    assert relative_error(rest, whole) < 1e-4
    # A stock sampler can go on below the top, by its own rule.
    assert relative_error(sampled(model, pair, levels[1:], latent=half, sampler="euler"), whole) < 0.5


def test_a_window_that_meets_only_the_middle_of_a_step_acts_and_is_reckoned_with(
    flux: ModelPatcher, pair: ReferenceTrajectory, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    top, second = falling_levels(pair)[:2].tolist()
    sampling: Any = flux.get_model_object("model_sampling")
    inside = [place / 1000 for place in range(1, 1000) if second < sampling.percent_to_sigma(place / 1000) < top]
    window = ScheduleWindow(inside[0], inside[-1])
    asked: list[float] = []
    original = wrappers.extra_images
    monkeypatch.setattr(wrappers, "extra_images", lambda *given: asked.append(original(*given)) or asked[-1])
    made = sampled(painted(flux, pair, window), pair)
    assert relative_error(made, sampled(flux, pair)) > 1e-4
    assert "does nothing" not in caplog.text and asked == [2]
    after = ScheduleWindow(0.9999, 1.0)
    assert torch.equal(sampled(painted(flux, pair, after), pair), sampled(flux, pair))
    assert "StyleID does nothing in this run" in caplog.text and asked == [2, 0]


def test_pictures_inverted_behind_another_shift_are_told_so(flux: ModelPatcher, pair: ReferenceTrajectory) -> None:
    flatter = inverted(ModelSamplingFlux().patch(flux, 0.5, 0.5, 64, 64)[0], images=1)
    with pytest.raises(ValueError, match=r"at other noise levels \(another shift\).*the same ModelSampling node"):
        check_pair(flux, pair.select([0]), flatter)
    small = replace(flatter, latents=flatter.latents[..., :6])
    with pytest.raises(ValueError, match="12x8 latent pixels and the style 6x8 latent pixels"):
        check_pair(flux, pair.select([0]), small)
