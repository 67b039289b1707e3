"""What StyleID says of a run on a flow model that goes on, but not as its pictures were inverted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import comfy.samplers
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from semblance.attention.engine.scope import ScheduleWindow, Scope
from semblance.attention.functional.inversion import MIDPOINT
from semblance.attention.functional.statistics import adain
from semblance.attention.methods.styleid.joint import JointStyleID
from semblance.attention.references.trajectory import ReferenceTrajectory
from semblance.host.binding.model import add_patch, map_transformer
from semblance.host.conditioning import Text
from semblance.host.inversion.flow import flow_sampler
from semblance.host.inversion.runs import as_latent, falling_levels
from semblance.host.inversion.solver import invert
from semblance.host.inversion.styleid_start import start_of
from semblance.host.latents import picture_latents
from semblance.tests.support.studio import relative_error
from semblance.tests.support.transformers import TRANSFORMERS
from semblance.tests.tiny_models import sampler_custom

FLUX = TRANSFORMERS["flux"]
TEXT = FLUX.conditioning()
OTHER_TEXT = "The positive text of this run is not the one that the pictures were inverted with"
OTHER_START = "The latent is not the noise of StyleID's content"
OTHER_STEPS = "The steps of this run are not those of the inversion"


@pytest.fixture(scope="module")
def flux() -> ModelPatcher:
    return FLUX.model()


@pytest.fixture(scope="module")
def pair(flux: ModelPatcher) -> ReferenceTrajectory:
    pictures = picture_latents(FLUX.latent(2, 8, 12, seed=5)) * 2.7
    return invert(flux, pictures, 4, MIDPOINT, Text(TEXT, TEXT)).trajectory


def sampled(
    model: ModelPatcher, pair: ReferenceTrajectory, text: Any = TEXT, strength: float = 1.0, **given: Any
) -> Tensor:
    scope = Scope(map_transformer(model).preset("all"), given.pop("window", ScheduleWindow()))
    content, style = pair.select([0]), pair.select([1])
    patched = add_patch(model, JointStyleID(content, style, scope, strength=strength))
    latent = given.pop("latent", None)
    start = as_latent(model, content.latents[-1]) if latent is None else latent
    sigmas = given.pop("sigmas", falling_levels(pair))
    return sampler_custom(patched, text, text, {"samples": start}, sigmas, sampler=flow_sampler(), **given)


def test_another_text_than_the_inversions_is_told_and_the_run_goes_on(
    flux: ModelPatcher, pair: ReferenceTrajectory, caplog: pytest.LogCaptureFixture
) -> None:
    """The pictures are looked at with the run's text: 0.5 to 0.75 beside, and nothing was said."""
    assert torch.isfinite(sampled(flux, pair)).all() and caplog.text == ""
    rounded = [[TEXT[0][0].bfloat16().float(), TEXT[0][1]]]
    sampled(flux, pair, rounded)
    sampled(flux, pair, FLUX.conditioning(seed=9), strength=0.0)
    assert caplog.text == ""
    several = [*TEXT, *FLUX.conditioning(seed=9)]
    for text in (FLUX.conditioning(seed=9), FLUX.conditioning(tokens=9), several):
        caplog.clear()
        assert torch.isfinite(sampled(flux, pair, text)).all()
        assert caplog.text.count(OTHER_TEXT) == 1


def test_another_guidance_of_the_text_is_told_with_both_numbers(
    flux: ModelPatcher, pair: ReferenceTrajectory, caplog: pytest.LogCaptureFixture
) -> None:
    assert pair.embedded_guidance == 4.0
    sampled(flux, pair, FLUX.conditioning(guidance=1.5))
    assert "(FluxGuidance) is 1.5, but the pictures were inverted at 4. Set both alike." in caplog.text
    assert OTHER_TEXT not in caplog.text
    caplog.clear()
    sampled(flux, replace(pair, embedded_guidance=None), FLUX.conditioning(guidance=1.5))
    assert caplog.text == "", "a file of an earlier version does not hold it"


def test_a_model_that_reads_no_guidance_is_not_asked_for_one(caplog: pytest.LogCaptureFixture) -> None:
    """ComfyUI gives Flux schnell one too, which it ignores."""
    schnell = FLUX.model(guidance_embed=False)
    pictures = picture_latents(FLUX.latent(2, 8, 12, seed=5))
    pair = invert(schnell, pictures, 2, MIDPOINT, Text(TEXT, TEXT)).trajectory
    sampled(schnell, pair, FLUX.conditioning(guidance=1.5))
    assert pair.embedded_guidance is None and caplog.text == ""


def test_a_picture_in_place_of_the_noise_is_told(
    flux: ModelPatcher, pair: ReferenceTrajectory, caplog: pytest.LogCaptureFixture
) -> None:
    """A latent from VAE Encode was taken for StyleID's and came out 1.08 beside, without a word."""
    content, style = pair.select([0]), pair.select([1])
    for strength in (0.0, 0.4, 1.0):
        sampled(flux, pair, latent=start_of(flux, content, style, "exact", strength).latent)
    assert OTHER_START not in caplog.text
    sampled(flux, pair, latent=as_latent(flux, content.latents[0]))
    assert caplog.text.count(OTHER_START) == 1


def test_steps_of_another_scheduler_are_told_and_parts_of_ones_own_are_not(
    flux: ModelPatcher, pair: ReferenceTrajectory, caplog: pytest.LogCaptureFixture
) -> None:
    """Between its points the trajectory is a line: 0.15 to 0.23 beside, without a word."""
    sampling, levels = flux.get_model_object("model_sampling"), falling_levels(pair)
    half = sampled(flux, pair, sigmas=levels[:3])
    sampled(flux, pair, sigmas=levels[2:], latent=half)
    assert OTHER_STEPS not in caplog.text
    beta = comfy.samplers.calculate_sigmas(sampling, "beta", 4)
    sampled(flux, pair, sigmas=beta, strength=0.0)
    assert OTHER_STEPS not in caplog.text
    sampled(flux, pair, sigmas=beta)
    assert caplog.text.count(OTHER_STEPS) == 1


def test_sigmas_of_one_level_are_told_in_words(
    flux: ModelPatcher, pair: ReferenceTrajectory, caplog: pytest.LogCaptureFixture
) -> None:
    """It said: its steps lie at of the noise schedule."""
    sampled(flux, pair, sigmas=falling_levels(pair)[:1])
    assert "its SIGMAS hold one noise level, and so there is no step" in caplog.text
    assert "lie at" not in caplog.text


def test_adain_moves_mean_and_deviation_of_the_noise_as_far_as_it_is_turned_up(
    flux: ModelPatcher, pair: ReferenceTrajectory
) -> None:
    content, style = pair.select([0]), pair.select([1])
    own, other = content.latents[-1], style.latents[-1] * 2 + 0.5
    louder = replace(style, latents=torch.cat([style.latents[:-1], other[None]]))

    def statistics(latent: Tensor) -> tuple[Tensor, Tensor]:
        return latent.mean(dim=(2, 3)), latent.std(dim=(2, 3))

    for turned in (0.0, 0.3, 0.7, 1.0):
        given = start_of(flux, content, louder, "exact", turned).latent
        state = flux.model.process_latent_in(given)
        for found, begin, end in zip(statistics(state), statistics(own), statistics(other), strict=True):
            assert torch.allclose(found, torch.lerp(begin, end, turned), atol=1e-3), turned
        assert relative_error(state, torch.lerp(own, adain(own, other, 1.0), turned)) < 1e-5
