"""Each conditioning gets what its role asks for, whatever the guider calls it and however it is sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import comfy.hooks
import comfy.samplers
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_custom_sampler import Guider_DualCFG
from comfy_extras.nodes_perpneg import Guider_PerpNeg
from node_helpers import conditioning_set_values
from torch import Tensor

import nodes
from semblance.attention.engine.scope import ImageMask, Scope
from semblance.attention.methods.instantstyle import ImageTokens, InstantStyle
from semblance.host.binding.model import add_patch
from semblance.tests.support.studio import Conditioning, Studio, painted, record_calls, relative_error, run_guider, wrap
from semblance.tests.support.toy_patches import Diary
from semblance.tests.tiny_models import lora_state_dict

ONE_STEP = torch.tensor([5.0, 0.0])


def record_sides(model: ModelPatcher) -> tuple[ModelPatcher, list[list[Tensor | None]]]:
    """A clone of `model` that writes down what came out for each conditioning, in the guider's order."""
    sides: list[list[Tensor | None]] = []

    def recorder(executor: Any, model: Any, conds: Sequence[Any], *rest: Any) -> list[Tensor]:
        outputs = executor(model, conds, *rest)
        sides.append([None if cond is None else output for cond, output in zip(conds, outputs, strict=True)])
        return outputs

    return wrap(model, WrappersMP.CALC_COND_BATCH, recorder), sides


def one_sided(patch: InstantStyle, conditional: bool) -> InstantStyle:
    """The patch giving every row the tokens of one side."""
    tokens = patch.tokens.conditional[0] if conditional else patch.tokens.unconditional[0]
    return replace(patch, tokens=ImageTokens((tokens,), (tokens,), (1.0,)))


def cfg(studio: Studio, model: ModelPatcher, scale: float = 3.0) -> comfy.samplers.CFGGuider:
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(studio.positive, studio.negative)
    guider.set_cfg(scale)
    return guider


def dual_cfg(studio: Studio, model: ModelPatcher, nested: bool = False, second: float = 2.0) -> Guider_DualCFG:
    guider = Guider_DualCFG(model)
    guider.set_conds(studio.positive, studio.text(9), studio.negative)
    guider.set_cfg(3.0, second, nested)
    return guider


def perp_neg(studio: Studio, model: ModelPatcher) -> Guider_PerpNeg:
    guider = Guider_PerpNeg(model)
    guider.set_conds(studio.positive, studio.negative, studio.text(9))
    guider.set_cfg(3.0, 0.7)
    return guider


def hooked(text: Conditioning, hook: comfy.hooks.Hook) -> Conditioning:
    group = comfy.hooks.HookGroup()
    group.add(hook)
    return conditioning_set_values(text, {"hooks": group})


def silent_hook() -> comfy.hooks.TransformerOptionsHook:
    """A hook that changes nothing, but keeps its conditioning in a call of its own."""
    silent = {"patches": {"attn2_output_patch": [lambda output, extra: output]}}
    return comfy.hooks.TransformerOptionsHook(silent, comfy.hooks.EnumHookScope.HookedOnly)


def hooked_positive(studio: Studio, model: ModelPatcher) -> comfy.samplers.CFGGuider:
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(hooked(studio.positive, silent_hook()), studio.negative)
    guider.set_cfg(3.0)
    return guider


# With the sides of the guider's list in its own order, True for conditional ones.
GUIDERS = {
    "cfg": (cfg, (True, False)),
    "dual cfg": (dual_cfg, (False, True, True)),
    "nested dual cfg": (lambda studio, model: dual_cfg(studio, model, nested=True), (False, True, True)),
    "dual cfg without negative": (lambda studio, model: dual_cfg(studio, model, second=1.0), (None, True, True)),
    "perp-neg": (perp_neg, (True, False, False)),
    "hooked positive": (hooked_positive, (True, False)),
    "cfg 1": (lambda studio, model: cfg(studio, model, 1.0), (True, None)),
}


@pytest.mark.parametrize("apart", [False, True], ids=["batched", "apart"])
@pytest.mark.parametrize("name", GUIDERS)
def test_every_conditioning_gets_the_image_tokens_of_its_side(
    sd15: Studio, name: str, apart: bool, request: pytest.FixtureRequest
) -> None:
    if apart:
        request.getfixturevalue("one_conditioning_a_call")
    guider, expected = GUIDERS[name]
    patch = sd15.instantstyle()
    outcomes: list[list[Tensor | None]] = []
    for one in (patch, one_sided(patch, True), one_sided(patch, False)):
        model, sides = record_sides(add_patch(sd15.model, one))
        run_guider(guider(sd15, model), ONE_STEP)
        outcomes.append(sides[0])
    for role, found, conditional, unconditional in zip(expected, *outcomes, strict=True):
        if role is None:
            assert found is None
            continue
        right, wrong = (conditional, unconditional) if role else (unconditional, conditional)
        assert relative_error(found, right) < 1e-5
        assert relative_error(found, wrong) > 1e-2


def test_the_layout_names_the_roles_as_the_guider_does(sd15: Studio) -> None:
    roles: dict[str, list[str]] = {}
    for name, guider in (("cfg", cfg), ("dual", dual_cfg), ("perp", perp_neg)):
        diary = Diary(Scope({"output.5": 1.0}))
        model, calls = record_calls(add_patch(sd15.model, diary))
        run_guider(guider(sd15, model), ONE_STEP)
        layout = diary.layouts[0]
        assert layout.images == 2 and layout.latent_size == (8, 8) and layout.rows == len(calls[0]["x"])
        # ComfyUI sends the list from its end.
        roles[name] = [chunk.role for chunk in layout.chunks]
    assert roles == {
        "cfg": ["negative", "positive"],
        "dual": ["positive", "middle", "negative"],
        "perp": ["empty_negative_prompt", "negative", "positive"],
    }


@pytest.mark.parametrize("name", ["instantstyle", "edits output", "remembers"])
def test_a_hook_that_takes_one_side_apart_changes_nothing(studio: Studio, name: str) -> None:
    plain = studio.sample(studio.with_patch(name))
    model, calls = record_calls(studio.with_patch(name))
    apart = studio.sample(model, positive=hooked(studio.positive, silent_hook()))
    assert sorted(call["numbers"] for call in calls[:2]) == [[0], [1]]
    assert relative_error(apart, plain) < 1e-4


def test_a_lora_hooked_to_one_side_leaves_the_other_to_our_patch(sd15: Studio) -> None:
    patch, outcomes = sd15.instantstyle(), []
    for positive in (sd15.positive, conditioning_set_values(sd15.positive, {"hooks": lora_hook(sd15)})):
        model, sides = record_sides(add_patch(sd15.model, patch))
        sd15.sample(model, positive=positive, steps=1)
        outcomes.append(sides[0])
    (positive, negative), (hooked_positive, other_negative) = outcomes
    assert relative_error(other_negative, negative) < 1e-5
    assert relative_error(hooked_positive, positive) > 1e-3
    assert torch.equal(sd15.sample(), sd15.plain)


def lora_hook(studio: Studio) -> comfy.hooks.HookGroup:
    return comfy.hooks.create_hook_lora(lora_state_dict(studio.model), 1.0, 0.0)


def test_the_same_text_on_both_sides_is_not_mixed_up(sd15: Studio) -> None:
    patch = sd15.instantstyle()
    model, sides = record_sides(add_patch(sd15.model, patch))
    sd15.sample(model, positive=sd15.positive, negative=sd15.positive, steps=1)
    positive, negative = sides[0]
    assert relative_error(positive, negative) > 1e-2


def test_another_packs_own_call_for_one_side_keeps_its_role(sd15: Studio) -> None:
    """As self-attention guidance does: it sends the negative side alone, as number 0."""
    diary = Diary(Scope({"output.5": 1.0}))
    model = add_patch(sd15.model, diary)

    def look_again(args: dict[str, Any]) -> Tensor:
        for name in ("uncond", "cond"):
            comfy.samplers.calc_cond_batch(
                args["model"], [args[name]], args["input"], args["sigma"], args["model_options"]
            )
        return args["denoised"]

    model.set_model_sampler_post_cfg_function(look_again)
    sd15.sample(model, steps=1)
    roles = [tuple(chunk.role for chunk in layout.chunks) for layout in diary.layouts[::2]]  # self and cross each tell
    assert roles == [("negative", "positive"), ("negative",), ("positive",)]


def test_a_call_within_a_call_does_not_make_the_outer_one_forget_its_roles(sd15: Studio) -> None:
    diary = Diary(Scope({"output.5": 1.0}))
    outer: list[Any] = []

    def note(executor: Any, *arguments: Any) -> Any:
        outer.append(arguments)
        return executor(*arguments)

    def call_within(apply_model: Any, args: dict[str, Any]) -> Tensor:
        if len(outer) == 1:
            inner_model, (_, negative), *rest = outer[0]
            comfy.samplers.calc_cond_batch(inner_model, [negative], *rest)
        return apply_model(args["input"], args["timestep"], **args["c"])

    model = wrap(add_patch(sd15.model, diary), WrappersMP.CALC_COND_BATCH, note)
    model.set_model_unet_function_wrapper(call_within)
    sd15.sample(model, steps=1)
    roles = [tuple(chunk.role for chunk in layout.chunks) for layout in diary.layouts[::2]]
    assert roles == [("negative",), ("negative", "positive")]


AREA = {"width": 64, "height": 48, "x": 32, "y": 16, "strength": 1.0}  # pixels, at 4 and 2 of the latent


def area_entries(studio: Studio) -> Conditioning:
    (area,) = nodes.ConditioningSetArea().append(studio.text(3), **AREA)
    return [*studio.positive, *area]


def masked_model(studio: Studio, mask: ImageMask, pictures: int = 1) -> ModelPatcher:
    patch = studio.instantstyle(scope=studio.everywhere(mask=mask), pictures=pictures)
    return add_patch(studio.model, patch)


@pytest.mark.parametrize("masks", [1, 2], ids=["one mask", "a mask for each image or picture"])
@pytest.mark.parametrize("pictures", [1, 2])
def test_under_an_area_conditioning_the_mask_is_cropped_with_the_picture(
    studio: Studio, masks: int, pictures: int
) -> None:
    """The crop's call equals that of a model whose whole picture is the crop, with the mask cut by hand."""
    mask = painted(masks, 96, 128)
    model, calls = record_calls(masked_model(studio, mask, pictures))
    studio.sample(model, size=(12, 16), steps=1, positive=area_entries(studio))
    (crop,) = [call for call in calls if call["x"].shape[2:] == (6, 8)]
    by_hand = masked_model(studio, ImageMask(mask.values[:, 16:64, 32:96]), pictures)
    uncropped = masked_model(studio, mask, pictures)
    assert relative_error(called_again(by_hand, crop), crop["output"]) < 1e-5
    assert relative_error(called_again(uncropped, crop), crop["output"]) > 1e-3


def called_again(model: ModelPatcher, call: dict[str, Any]) -> Tensor:
    """A recorded call made again without any sampler."""
    options = {**model.model_options["transformer_options"], "cond_or_uncond": call["numbers"]}
    sigma = torch.full((len(call["x"]),), call["sigma"])
    with torch.no_grad():
        return model.model.apply_model(
            call["x"], sigma, c_crossattn=call["context"], transformer_options=options, **call["more"]
        )


def test_areas_are_known_by_side_and_in_whole_pixels(sd15: Studio) -> None:
    diary = Diary(Scope({"output.5": 1.0}))
    percents = {"width": 0.5, "height": 0.5, "x": 0.5, "y": 0.75, "strength": 1.0}
    (by_percent,) = nodes.ConditioningSetAreaPercentage().append(sd15.text(4), **percents)
    entries = [*area_entries(sd15), *by_percent]
    sd15.sample(add_patch(sd15.model, diary), size=(12, 16), steps=1, positive=entries)
    seen = {chunk for layout in diary.layouts for chunk in layout.chunks}
    assert {(chunk.role, chunk.crop) for chunk in seen} == {
        (role, area) for role in ("positive", "negative") for area in (None, (6, 8, 2, 4), (3, 8, 9, 8))
    }
    assert {layout.latent_size for layout in diary.layouts} == {(12, 16)}


def test_a_mask_with_bounds_as_area_is_a_crop_too(sd15: Studio) -> None:
    diary = Diary(Scope({"output.5": 1.0}))
    mask = torch.zeros(1, 96, 128)
    mask[:, 16:80, 32:96] = 1
    bounded = nodes.ConditioningSetMask().append(sd15.text(3), mask, "mask bounds", 1.0)[0]
    sd15.sample(add_patch(sd15.model, diary), size=(12, 16), steps=1, positive=[*sd15.positive, *bounded])
    areas = {chunk.crop for layout in diary.layouts for chunk in layout.chunks}
    assert areas == {None, (8, 8, 2, 4)}
