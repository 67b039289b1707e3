"""StyleDrop Guider beside other methods and other packs: functions around guidance, windows, hooks and ControlNet."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import comfy.hooks
import comfy.samplers
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_apg import APG
from comfy_extras.nodes_cfg import CFGNorm
from comfy_extras.nodes_model_advanced import RescaleCFG
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from torch import Tensor

import nodes
from semblance.attention.adapters.style_adapter import AdapterForm, StyleAdapter
from semblance.attention.engine.scope import Scope
from semblance.host.styledrop.applying import apply_adapter
from semblance.host.styledrop.guider import Scales, only_on
from semblance.tests.support.guided import CFG, ONE_STEP, SIGMAS, each_form, plain
from semblance.tests.support.speeds import slow
from semblance.tests.support.studio import (
    Studio,
    guider_of,
    relative_error,
    rows_of_calls,
    run_guider,
)
from semblance.tests.support.style_adapters import guider, style_adapter
from semblance.tests.support.windows import windowed
from semblance.tests.tiny_models import make_controlnet

OTHERS: dict[str, Any] = {
    "PAG": lambda model: PerturbedAttentionGuidance.execute(model, 3.0)[0],
    "RescaleCFG": lambda model: RescaleCFG().patch(model, 0.7)[0],
    "APG": lambda model: APG.execute(model, 0.5, 2.0, 0.0)[0],
    "CFGNorm": lambda model: CFGNorm.execute(model, 1.0)[0],
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_packs_functions_act_as_on_the_base_model(sd15: Studio, name: str) -> None:
    """With a fresh adapter they give what they give under CFG, and a tuned one adds its style to that."""
    other, size = OTHERS[name](sd15.model), {"images": 1, "size": (16, 16)}

    def cfg(model: ModelPatcher) -> Tensor:
        return run_guider(guider_of(sd15, model, CFG), ONE_STEP, **size)

    def guided(model: ModelPatcher, adapter: StyleAdapter) -> Tensor:
        return run_guider(guider(sd15, adapter, Scales(2.0, CFG - 1), model), ONE_STEP, **size)

    assert relative_error(cfg(other), cfg(sd15.model)) > 1e-4
    assert relative_error(guided(other, style_adapter(sd15.model, size=0.0)), cfg(other)) < 1e-5
    tuned = style_adapter(sd15.model)
    added, expected = (guided(model, tuned) - cfg(model) for model in (other, sd15.model))
    assert relative_error(added, expected) < 1e-3


def test_a_function_that_asks_the_model_itself_gets_the_two_sides_of_cfg(sd15: Studio) -> None:
    asked: list[int] = []

    def ask(given: dict[str, Any]) -> list[Tensor]:
        asked.append(len(given["conds"]))
        return comfy.samplers.calc_cond_batch(
            given["model"], given["conds"], given["input"], given["sigma"], given["model_options"]
        )

    model = sd15.model.clone()
    model.set_model_sampler_calc_cond_batch_function(ask)
    adapter, scales = style_adapter(sd15.model), Scales(1.0, 4.0)
    expected = run_guider(guider(sd15, adapter, scales), SIGMAS)
    assert relative_error(run_guider(guider(sd15, adapter, scales, model), SIGMAS), expected) < 1e-5
    assert asked == [2, 2, 2]


def test_samplers_that_need_the_unconditional_side_get_it_at_text_scale_zero(sd15: Studio) -> None:
    model, counted = rows_of_calls(sd15.model)
    made = guider(sd15, style_adapter(sd15.model), Scales(1.0, 0.0), model)
    assert torch.isfinite(run_guider(made, SIGMAS, images=1, sampler="euler_cfg_pp")).all()
    assert counted == [3] * 3


@pytest.mark.parametrize("name", ["instantstyle", "edits output", "brings guests"])
def test_other_methods_act_on_tuned_and_base_alike(sd15: Studio, name: str) -> None:
    fresh = style_adapter(sd15.model, size=0.0)
    other = sd15.with_patch(name)
    made = run_guider(guider(sd15, fresh, Scales(2.0, CFG - 1), other), SIGMAS)
    assert relative_error(made, plain(sd15, other)) < 1e-5


def test_an_adapter_on_the_model_counts_to_the_tuned_side(sd15: Studio) -> None:
    """Two adapters: one applied before, one in the guider; the base has neither."""
    adapter, fresh = style_adapter(sd15.model), style_adapter(sd15.model, size=0.0)
    applied = apply_adapter(sd15.model, adapter, 1.0, lambda known: Scope(known.family.preset("all")))
    scales = Scales(1.0, CFG - 1)
    made = run_guider(guider(sd15, fresh, scales, applied), SIGMAS)
    assert relative_error(made, run_guider(guider(sd15, adapter, scales), SIGMAS)) < 1e-5


@each_form
def test_in_context_windows_each_side_is_known(sd15: Studio, form: AdapterForm) -> None:
    """The windows hand over copies of the conditionings. Windows of one image show each image alone."""
    adapter, scales = style_adapter(sd15.model, form), Scales(1.0, CFG - 1)
    expected = run_guider(guider(sd15, adapter, scales), SIGMAS)
    made = run_guider(guider(sd15, adapter, scales, windowed(sd15.model, 1)), SIGMAS)
    assert relative_error(made, expected) < 1e-4


@pytest.mark.slow
def test_a_prompt_with_hooks_of_its_own_keeps_them_on_both_sides(sd15: Studio) -> None:
    other = {
        key.replace(".up", ".lora_up.weight").replace(".down", ".lora_down.weight"): tensor
        for key, tensor in style_adapter(sd15.model, "lora", seed=4).tensors.items()
    }
    hooks = comfy.hooks.create_hook_lora(other, 1.0, 0.0)
    prompt = comfy.hooks.set_hooks_for_conditioning(sd15.positive, hooks)
    hooked = replace(sd15, positive=prompt)
    expected = run_guider(guider_of(hooked, sd15.model, CFG), SIGMAS)
    assert relative_error(expected, plain(sd15)) > 1e-3
    for form in ("bottleneck", "lora"):
        fresh = style_adapter(sd15.model, form, size=0.0)
        assert relative_error(run_guider(guider(hooked, fresh, Scales(2.0, CFG - 1)), SIGMAS), expected) < 1e-4


AREA = {"area": (4, 4, 0, 0), "set_area_to_bounds": False}


@each_form
@pytest.mark.parametrize("side", ["positive", "negative"])
def test_with_an_area_the_adapter_keeps_to_its_side(sd15: Studio, form: AdapterForm, side: str) -> None:
    """ComfyUI gives the other sides a conditioning for the area too, with the hooks of the side it comes from."""
    text, prompt = sd15.text(5)[0], getattr(sd15, side)
    there = replace(sd15, **{side: [*prompt, [text[0], {**text[1], **AREA}]]})
    adapter, seen = style_adapter(sd15.model, form), list[tuple[Tensor, Tensor]]()

    def note(given: dict[str, Any]) -> Tensor:
        seen.append((given["cond_denoised"].clone(), given["uncond_denoised"].clone()))
        return given["denoised"]

    model = sd15.model.clone()
    model.set_model_sampler_post_cfg_function(note)
    for strength in (0.0, 1.0):
        run_guider(guider(there, adapter, Scales(1.0, 4.0), model, strength=strength), ONE_STEP)
    assert all(relative_error(now, before) < 1e-6 for before, now in zip(*seen, strict=True))
    # A is what the adapter on the model itself gives, in the area too.
    applied = apply_adapter(sd15.model, adapter, 1.0, lambda known: Scope(known.family.preset("all")))
    tuned = run_guider(guider(there, adapter, Scales(0.0, 0.0)), ONE_STEP)
    assert relative_error(tuned, run_guider(guider_of(there, applied, 1.0), ONE_STEP)) < 1e-5


def test_other_hooks_stay_where_the_adapters_are_taken_off() -> None:
    own, users = (comfy.hooks.create_hook_lora({}, 1.0, 0.0) for _ in range(2))
    both = users.clone_and_combine(own)
    conds = {role: [{"hooks": both}, {"hooks": both}, {"hooks": users}, {}] for role in ("positive", "negative")}
    only_on(conds, "positive", own)

    def held(role: str) -> list[tuple[bool, bool]]:
        groups = [cond.get("hooks") or comfy.hooks.HookGroup() for cond in conds[role]]
        return [(own.hooks[0] in group.hooks, users.hooks[0] in group.hooks) for group in groups]

    assert held("positive") == [(True, True), (True, True), (True, True), (True, False)]
    assert held("negative") == [(False, True), (False, True), (False, True), (False, False)]
    # ComfyUI sends together what shares a group.
    assert conds["negative"][0]["hooks"] is conds["negative"][1]["hooks"]


@pytest.mark.parametrize("both", [True, slow(False)], ids=["advanced", "old"])
def test_a_controlnet_acts_on_every_side_that_it_acts_on_under_cfg(sd15: Studio, both: bool) -> None:
    size, seen = {"images": 1, "size": (8, 8)}, torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(2))
    if both:
        given = (sd15.positive, sd15.negative, make_controlnet("sd15"), seen, 1.0, 0.0, 1.0)
        positive, negative = nodes.ControlNetApplyAdvanced().apply_controlnet(*given)
    else:
        (positive,) = nodes.ControlNetApply().apply_controlnet(sd15.positive, make_controlnet("sd15"), seen, 1.0)
        negative = sd15.negative
    guided = replace(sd15, positive=positive, negative=negative)
    expected = run_guider(guider_of(guided, sd15.model, CFG), SIGMAS, **size)
    assert relative_error(expected, run_guider(guider_of(sd15, sd15.model, CFG), SIGMAS, **size)) > 1e-3
    fresh = style_adapter(sd15.model, size=0.0)
    made = guider(guided, fresh, Scales(2.0, CFG - 1))
    assert relative_error(run_guider(made, SIGMAS, **size), expected) < 1e-4
