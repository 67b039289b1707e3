"""A story acts at the same noise whatever takes the steps: schedulers, few steps, chains of samplers, other models."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_model_advanced import ModelSamplingContinuousEDM
from comfy_extras.nodes_model_downscale import PatchModelAddDownscale
from torch import Tensor

import nodes
from semblance.attention.engine.moment import Moment
from semblance.attention.engine.scope import ImageMask
from semblance.attention.families import CONSISTORY
from semblance.attention.methods.consistory.applied import applied_subject
from semblance.attention.methods.consistory.features import FEATURES_SIGMA, features_step
from semblance.attention.methods.consistory.method import ConsiStory
from semblance.attention.methods.consistory.settings import Injection, MaskDropout, QueryBlend
from semblance.attention.subjects.user_masks import UserMasks
from semblance.host.binding.model import add_patch
from semblance.host.binding.run import Run
from semblance.host.subjects.subject import record
from semblance.tests.support.speeds import slow
from semblance.tests.support.studio import STORY, Studio, painted, relative_error, told_on, wrap

NO_INJECTION = Injection(0.0)


def story(studio: Studio, **settings: Any) -> ConsiStory:
    return ConsiStory(STORY, studio.model_map.family.choice(CONSISTORY), **settings)


def moments(model: Any, sigmas: list[float]) -> list[Moment]:
    run = Run(model.get_model_object("model_sampling"), sigmas, (8, 8))
    return [run.moment(sigma) for sigma in sigmas[:-1]]


def levels(model: Any, timesteps: list[int]) -> list[float]:
    schedule: Any = model.get_model_object("model_sampling")
    return [*(float(schedule.sigmas[timestep]) for timestep in timesteps), 0.0]


def advanced(studio: Studio, model: Any, latent: Any, start: int, end: int, steps: int, **more: Any) -> Any:
    """What KSampler (Advanced) makes of a part of the steps; the first part adds the noise, the last takes all away."""
    settings: dict[str, Any] = {"scheduler": "normal", "sampler": "euler", "cfg": 4.0} | more
    return nodes.common_ksampler(
        model,
        3,
        steps,
        settings["cfg"],
        settings["sampler"],
        settings["scheduler"],
        told_on(model, studio.positive),
        studio.negative,
        latent,
        disable_noise=start > 0,
        start_step=start,
        last_step=end,
        force_full_denoise=end >= steps,
    )[0]


def in_parts(studio: Studio, patch: Any, *cuts: int, steps: int = 10) -> Tensor:
    latent: Any = {"samples": torch.zeros(2, 4, 16, 16)}
    for start, end in zip((0, *cuts), (*cuts, steps), strict=True):
        latent = advanced(studio, add_patch(studio.model, patch), latent, start, end, steps)
    return latent["samples"]


# One axis


@pytest.mark.parametrize("steps", [4, 10, 20, 50, 100])
def test_evenly_spaced_steps_act_as_the_authors_count_them(sd15: Studio, steps: int) -> None:
    spacing = 1000 // steps
    run = moments(sd15.model, levels(sd15.model, [1 + spacing * step for step in reversed(range(steps))]))
    assert [moment.number for moment in run] == list(range(steps))
    window, blend = Injection().window, QueryBlend()
    copied = [moment.step for moment in run if window.contains(moment)]
    assert copied == list(range(int(steps * 0.1), int(steps * 0.3334) + 1))
    last = int(steps * 0.1)
    weights = [0.9 + (0.81836735 - 0.9) * step / max(last, 1) for step in range(last + 1)]
    assert [blend.weight(moment) for moment in run[: last + 1]] == pytest.approx(weights)
    assert not any(blend.weight(moment) for moment in run[last + 1 :])


@pytest.mark.parametrize("scheduler", ["simple", "sgm_uniform", "karras", "exponential", "ddim_uniform"])
def test_any_scheduler_copies_at_the_same_noise(sd15: Studio, scheduler: str) -> None:
    schedule: Any = sd15.model.get_model_object("model_sampling")
    run = moments(sd15.model, comfy.samplers.calculate_sigmas(schedule, scheduler, 50).tolist())
    copied = [moment.sigma for moment in run if Injection().window.contains(moment)]
    top, bottom = (float(schedule.sigmas[timestep]) for timestep in (881, 661))
    assert 0.7 < max(copied) / top < 1.2 and 0.75 < min(copied) / bottom < 1.1


def test_features_are_taken_at_sigma_0_725_of_any_schedule(sd15: Studio) -> None:
    schedule: Any = sd15.model.get_model_object("model_sampling")
    assert float(schedule.sigmas[261]) == pytest.approx(FEATURES_SIGMA, rel=1e-5)
    model = ModelSamplingContinuousEDM().patch(sd15.model, "eps", 120.0, 0.002)[0]
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "karras", 50)
    assert features_step(moments(model, sigmas.tolist())[0]) == 32


def test_a_draw_is_that_of_its_noise_level_in_a_part_of_the_steps_too(sd15: Studio) -> None:
    for scheduler in ("normal", "karras"):
        schedule = sd15.model.get_model_object("model_sampling")
        sigmas = comfy.samplers.calculate_sigmas(schedule, scheduler, 10).tolist()
        whole, half = moments(sd15.model, sigmas), moments(sd15.model, sigmas[5:])
        draws = [MaskDropout().at(moment, 2, (8, 8)) for moment in (*whole[5:], *half)]
        assert all(torch.equal(one, other) for one, other in zip(draws[:5], draws[5:], strict=True))
        assert not any(torch.equal(draws[step], draws[step + 1]) for step in range(4))


# Few steps


@pytest.mark.parametrize(("steps", "scheduler"), [(4, "sgm_uniform"), (8, "normal"), (4, "ddim_uniform")])
def test_queries_blend_in_few_steps_or_cost_no_call(sd15: Studio, steps: int, scheduler: str) -> None:
    calls: list[int] = []

    def counted(executor: Any, *arguments: Any, **named: Any) -> Tensor:
        calls[-1] += 1
        return executor(*arguments, **named)

    def sampled(strength: float) -> Tensor:
        patch = story(sd15, blend=QueryBlend(strength), injection=NO_INJECTION)
        calls.append(0)
        model = wrap(add_patch(sd15.model, patch), WrappersMP.DIFFUSION_MODEL, counted)
        return sd15.sample(model, steps=steps, scheduler=scheduler)

    blended, plain = sampled(1.0), sampled(0.0)
    assert (calls[0] > calls[1]) == (not torch.equal(blended, plain))
    assert scheduler == "ddim_uniform" or calls[0] == calls[1] + 1


# Chains


def test_two_samplers_tell_a_story_as_one_does(sd15: Studio) -> None:
    """What the attention saw in the first travels to the second with its LATENT."""
    patch = story(sd15, injection=NO_INJECTION)
    whole, halves = in_parts(sd15, patch), in_parts(sd15, patch, 5)
    assert relative_error(halves, whole) < 1e-5
    assert relative_error(whole, in_parts(sd15, replace(patch, words=replace(STORY, columns=(((9,),), ((11,),)))))) > 0


def test_two_samplers_with_drawn_masks_equal_one(sd15: Studio) -> None:
    masks = UserMasks(ImageMask((painted(2, 128, 128).values > 0.5).float()))
    patch = story(sd15, injection=NO_INJECTION, masks=masks)
    assert relative_error(in_parts(sd15, patch, 5), in_parts(sd15, patch)) < 1e-5


@pytest.mark.slow
def test_a_second_sampler_below_the_copying_equals_the_rest_of_one(sd15: Studio) -> None:
    """To the rounding of the latents between two samplers, which late steps make larger."""
    patch = story(sd15, fast=True)
    assert relative_error(in_parts(sd15, patch, 8), in_parts(sd15, patch)) < 1e-4


def test_a_sampler_that_ends_before_parts_are_matched_is_refused(sd15: Studio) -> None:
    with pytest.raises(ValueError, match=r"^The sampler ends at sigma .* seen at sigma 0.725.*Set injection to 0"):
        in_parts(sd15, story(sd15), 5)


# Other grids


@pytest.mark.parametrize("ours_first", [True, False])
@pytest.mark.parametrize("until", [slow(1.0), 0.2])
def test_a_node_that_shrinks_the_features_may_come_before_or_after(
    sd15: Studio, ours_first: bool, until: float
) -> None:
    def shrunk(model: Any) -> Any:
        return PatchModelAddDownscale.execute(model, 3, 2.0, 0.0, until, True, "bicubic", "bicubic")[0]

    def sampled(patch: Any) -> Tensor:
        model = shrunk(add_patch(sd15.model, patch)) if ours_first else add_patch(shrunk(sd15.model), patch)
        return sd15.sample(model, steps=6, size=(16, 16), scheduler="normal")

    plain = sd15.sample(shrunk(sd15.model), steps=6, size=(16, 16), scheduler="normal")
    assert relative_error(sampled(story(sd15)), plain) > 1e-3
    whole = add_patch(sd15.model, story(sd15))
    _, subject = record(whole, lambda model: sd15.sample(model, steps=6, size=(16, 16), scheduler="normal"))
    applied = applied_subject(STORY, sd15.model_map.family.choice(CONSISTORY), subject)
    assert relative_error(sampled(applied), plain) > 1e-3
