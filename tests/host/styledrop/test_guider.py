"""StyleDrop Guider: its identities, what goes to the model, and other packs' functions around guidance."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import comfy.model_management
import comfy.samplers
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from semblance.attention.adapters.style_adapter import AdapterForm
from semblance.attention.engine.scope import ImageMask, ScheduleWindow, Scope
from semblance.attention.functional.two_scales import two_scale_guidance
from semblance.host.binding.model import patches_on
from semblance.host.binding.plan import cfg_of, guides
from semblance.host.styledrop.applying import apply_adapter
from semblance.host.styledrop.guider import Scales, styledrop_guider
from semblance.tests.support.guided import CFG, ONE_STEP, SIGMAS, each_form, plain
from semblance.tests.support.speeds import slow
from semblance.tests.support.studio import (
    Studio,
    guider_of,
    record_calls,
    relative_error,
    rows_of_calls,
    run_guider,
)
from semblance.tests.support.style_adapters import guider, style_adapter


@each_form
@pytest.mark.parametrize("style", [slow(0.0), 2.0])
def test_a_fresh_adapter_guides_as_cfg_does(
    studio: Studio, form: AdapterForm, style: float, request: pytest.FixtureRequest
) -> None:
    fresh = style_adapter(studio.model, form, size=0.0)
    made, cfg = guider(studio, fresh, Scales(style, CFG - 1)), guider_of(studio, studio.model, CFG)
    # Matrix products round differently in calls of three rows and of two.
    assert relative_error(run_guider(made, SIGMAS, images=1), run_guider(cfg, SIGMAS, images=1)) <= 1e-4
    request.getfixturevalue("one_conditioning_a_call")
    assert relative_error(run_guider(made, SIGMAS, images=1), run_guider(cfg, SIGMAS, images=1)) <= 1e-6


@each_form
def test_it_equals_three_predictions_made_by_hand(studio: Studio, form: AdapterForm) -> None:
    adapter, scales = style_adapter(studio.model, form), Scales(1.5, 4.0)
    tuned_model = apply_adapter(studio.model, adapter, 1.0, lambda known: Scope(known.family.preset("all")))

    def alone(model: ModelPatcher, prompt: Any) -> Tensor:
        one = comfy.samplers.CFGGuider(model)
        one.set_conds(prompt, studio.negative)
        return run_guider(one, ONE_STEP)

    tuned, base = (alone(model, studio.positive) for model in (tuned_model, studio.model))
    expected = two_scale_guidance(tuned, base, alone(studio.model, studio.negative), scales.style, scales.text)
    assert relative_error(tuned, base) > 1e-3
    assert relative_error(run_guider(guider(studio, adapter, scales), ONE_STEP), expected) < 1e-5


def test_style_and_text_pull_in_proportion_to_their_scales(sd15: Studio) -> None:
    adapter = style_adapter(sd15.model)

    def made(style: float, text: float) -> Tensor:
        return run_guider(guider(sd15, adapter, Scales(style, text)), ONE_STEP)

    assert relative_error(made(3.0, 4.0) - made(1.0, 4.0), 2 * (made(2.0, 4.0) - made(1.0, 4.0))) < 1e-3
    assert relative_error(made(1.0, 6.0) - made(1.0, 2.0), 2 * (made(1.0, 4.0) - made(1.0, 2.0))) < 1e-3


def test_the_three_sides_go_to_the_model_in_one_call(sd15: Studio) -> None:
    model, calls = record_calls(sd15.model)
    run_guider(guider(sd15, style_adapter(sd15.model), Scales(1.0, 4.0), model), SIGMAS)
    assert [sorted(call["numbers"]) for call in calls] == [[0, 1, 2]] * 3


def test_sides_sent_apart_give_the_same(sd15: Studio, request: pytest.FixtureRequest) -> None:
    adapter, scales = style_adapter(sd15.model), Scales(1.0, 4.0)
    together = run_guider(guider(sd15, adapter, scales), SIGMAS)
    request.getfixturevalue("one_conditioning_a_call")
    model, calls = record_calls(sd15.model)
    assert relative_error(run_guider(guider(sd15, adapter, scales, model), SIGMAS), together) < 1e-4
    assert len(calls) == 9 and all(len(call["numbers"]) == 1 for call in calls)


def test_a_negative_of_another_length_goes_apart_and_gives_the_same(sd15: Studio) -> None:
    """Texts of 231 and 100 tokens have no common length that ComfyUI would stretch them to."""
    adapter, scales = style_adapter(sd15.model), Scales(1.5, 4.0)
    texts = replace(sd15, positive=sd15.text(1, tokens=231), negative=sd15.text(2, tokens=100))
    tuned_model = apply_adapter(sd15.model, adapter, 1.0, lambda known: Scope(known.family.preset("all")))
    tuned, base = (run_guider(guider_of(texts, model, 1.0), ONE_STEP) for model in (tuned_model, sd15.model))
    negative = run_guider(guider_of(replace(texts, positive=texts.negative), sd15.model, 1.0), ONE_STEP)
    expected = two_scale_guidance(tuned, base, negative, scales.style, scales.text)
    model, calls = record_calls(sd15.model)
    assert relative_error(run_guider(guider(texts, adapter, scales, model), ONE_STEP), expected) < 1e-5
    assert sorted(sorted(call["numbers"]) for call in calls) == [[0, 2], [1]]


@pytest.mark.parametrize(
    ("scales", "rows"),
    [(Scales(1.0, 4.0), 3), (Scales(1.0, 0.0), 2), (Scales(0.0, 4.0), 3), (Scales(0.0, 0.0), 1)],
)
def test_a_side_that_no_scale_needs_is_not_computed(sd15: Studio, scales: Scales, rows: int) -> None:
    model, counted = rows_of_calls(sd15.model)
    run_guider(guider(sd15, style_adapter(sd15.model), scales, model), SIGMAS, images=1)
    assert counted == [rows] * 3


def test_without_scales_it_samples_the_tuned_model(sd15: Studio) -> None:
    adapter = style_adapter(sd15.model)
    applied = apply_adapter(sd15.model, adapter, 1.0, lambda known: Scope(known.family.preset("all")))
    made = run_guider(guider(sd15, adapter, Scales(0.0, 0.0)), SIGMAS)
    assert relative_error(made, plain(sd15, applied, cfg=1.0)) < 1e-5


def test_equal_scales_give_what_apply_gives_under_cfg(sd15: Studio) -> None:
    adapter = style_adapter(sd15.model)
    applied = apply_adapter(sd15.model, adapter, 1.0, lambda known: Scope(known.family.preset("all")))
    made = run_guider(guider(sd15, adapter, Scales(CFG - 1, CFG - 1)), ONE_STEP)
    assert relative_error(made, run_guider(guider_of(sd15, applied, CFG), ONE_STEP)) < 1e-5


def test_the_first_step_can_go_without_scales(sd15: Studio) -> None:
    model, counted = rows_of_calls(sd15.model)
    made = guider(sd15, style_adapter(sd15.model), Scales(1.0, 4.0, first_step=False), model)
    assert torch.isfinite(run_guider(made, SIGMAS, images=1)).all()
    assert counted == [1, 3, 3]


@each_form
def test_strength_zero_guides_as_cfg_does(sd15: Studio, form: AdapterForm) -> None:
    made = guider(sd15, style_adapter(sd15.model, form), Scales(2.0, CFG - 1), strength=0.0)
    assert relative_error(run_guider(made, SIGMAS), plain(sd15)) < 1e-5


@each_form
def test_outside_its_window_the_adapter_does_nothing(sd15: Studio, form: AdapterForm) -> None:
    adapter, scales = style_adapter(sd15.model, form), Scales(2.0, CFG - 1)
    early, whole = ScheduleWindow(0.0, 0.01), ScheduleWindow(0.0, 1.0)
    made = [run_guider(guider(sd15, adapter, scales, window=window), SIGMAS) for window in (early, whole)]
    assert relative_error(made[0], plain(sd15)) < 1e-5
    assert relative_error(made[1], plain(sd15)) > 1e-3


@pytest.mark.parametrize("end", [0.9, 0.999])
def test_a_lora_with_a_window_acts_in_every_run_of_a_guider(sd15: Studio, end: float) -> None:
    """A run of one step begins where the one before ended."""
    adapter = style_adapter(sd15.model, "lora")
    made = guider(sd15, adapter, Scales(1.0, CFG - 1), window=ScheduleWindow(0.0, end))
    first, second = run_guider(made, ONE_STEP), run_guider(made, ONE_STEP)
    assert torch.equal(first, second)
    assert relative_error(first, run_guider(guider_of(sd15, sd15.model, CFG), ONE_STEP)) > 1e-3


@each_form
def test_a_window_acts_on_the_steps_inside_it(sd15: Studio, form: AdapterForm) -> None:
    """Both forms keep to the same steps, and both go on from run to run in the same way."""
    scheduled: Any = sd15.model.get_model_object("model_sampling")
    start = 0.5 * (scheduled.timestep(torch.tensor(6.0)) + scheduled.timestep(torch.tensor(2.0))).item()
    window = ScheduleWindow(1 - start / 999, 1.0)
    adapter = style_adapter(sd15.model, form)
    made = guider(sd15, adapter, Scales(1.0, CFG - 1), window=window)
    first, second = run_guider(made, SIGMAS), run_guider(made, SIGMAS)
    assert torch.equal(first, second)
    # What goes on from where plain guidance is at the second level is what the whole run makes.
    whole = guider(sd15, adapter, Scales(1.0, CFG - 1))
    after = run_from(guider_of(sd15, sd15.model, CFG), whole)
    assert relative_error(first, after) < 1e-5


def run_from(before: comfy.samplers.CFGGuider, after: comfy.samplers.CFGGuider) -> Tensor:
    """One step of SIGMAS by one guider, and the others by another."""
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    zeros, euler = torch.zeros_like(noise), comfy.samplers.sampler_object("euler")
    begun = before.sample(noise, zeros, euler, SIGMAS[:2], disable_pbar=True, seed=0)
    return after.sample(torch.zeros_like(noise), begun, euler, SIGMAS[1:], disable_pbar=True, seed=0)


def test_a_masked_adapter_keeps_to_its_area(sd15: Studio) -> None:
    """In the network's last attention, after which only the norm's statistics carry it across the picture."""
    made = style_adapter(sd15.model)
    last = {name: tensor for name, tensor in made.tensors.items() if name.startswith("output.11.")}
    adapter, scales = replace(made, tensors=last), Scales(1.0, CFG - 1)
    left = (torch.arange(32) < 16).float().expand(1, 32, 32)
    without = run_guider(guider(sd15, adapter, scales, strength=0.0), ONE_STEP, size=(32, 32))
    masked = run_guider(guider(sd15, adapter, scales, mask=ImageMask(left)), ONE_STEP, size=(32, 32))
    change = (masked - without).abs().mean(dim=(0, 1, 2))
    assert change[:12].mean() > 2 * change[20:].mean()


def test_the_given_model_stays_as_it_was_and_nothing_is_left(sd15: Studio) -> None:
    for form in ("bottleneck", "lora"):
        run_guider(guider(sd15, style_adapter(sd15.model, form), Scales(1.0, 4.0)), SIGMAS)
    assert patches_on(sd15.model) == () and not sd15.model.patches
    assert torch.equal(plain(sd15), plain(sd15)) and torch.equal(sd15.sample(), sd15.plain)


@each_form
@pytest.mark.parametrize("last", [0, 1])
def test_the_users_interrupt_ends_it_and_the_next_run_is_whole(sd15: Studio, form: AdapterForm, last: int) -> None:
    adapter, scales, window = style_adapter(sd15.model, form), Scales(1.0, 4.0), ScheduleWindow(0.0, 0.9)
    expected = run_guider(guider(sd15, adapter, scales, window=window), SIGMAS)
    made = guider(sd15, adapter, scales, window=window)

    def stop(step: int, *rest: Any) -> None:
        if step == last:
            raise comfy.model_management.InterruptProcessingException

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run_guider(made, SIGMAS, callback=stop)
    assert torch.equal(run_guider(made, SIGMAS), expected)


def test_a_text_scale_without_a_negative_is_refused(sd15: Studio) -> None:
    def everywhere(known: Any) -> Scope:
        return Scope(known.family.preset("all"))

    given = (sd15.model, style_adapter(sd15.model), 1.0, everywhere)
    with pytest.raises(ValueError, match=r"The text scale is 6.5, .* none is connected. Connect the negative prompt"):
        styledrop_guider(*given, Scales(1.0, 6.5), sd15.positive, None)
    alone = styledrop_guider(*given, Scales(1.0, 0.0), sd15.positive, None)
    assert torch.equal(run_guider(alone, SIGMAS), run_guider(guider(sd15, given[1], Scales(1.0, 0.0)), SIGMAS))


def test_a_sampler_that_needs_the_negative_is_refused_without_one(sd15: Studio) -> None:
    made = guider(replace(sd15, negative=None), style_adapter(sd15.model), Scales(0.0, 0.0))
    with pytest.raises(ValueError, match=r"asks for the negative at a text scale of 0 too, .*Connect the negative"):
        run_guider(made, SIGMAS, sampler="euler_cfg_pp")


def test_the_plan_knows_that_the_run_is_guided(sd15: Studio) -> None:
    """StyleID, for one, says so if it is."""
    adapter = style_adapter(sd15.model)
    made, unguided = (guider(sd15, adapter, Scales(1.0, text)) for text in (4.0, 0.0))
    for one in (made, unguided):
        one.conds = one.original_conds
    assert guides(made) and not guides(unguided) and cfg_of(made) is None
