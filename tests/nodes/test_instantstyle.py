"""InstantStyle on the MODEL: weights, tiles, masks, the choices as ComfyUI's server passes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.utils  # noqa: F401  (puts ComfyUI on the path)
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from semblance.harness.server import ComfyUIServer, Prompt, PromptFailed
from semblance.host.binding.model import patches_on
from semblance.nodes.instantstyle import InstantStyle
from semblance.tests.support.graphs import encode, load_adapter, picture, relative_error, sampled, styled
from semblance.tests.tiny_models import (
    adapter_state_dict,
    make_clip_vision,
    make_unet,
    write_checkpoint,
    write_clip_vision,
)

SAME = 1e-5
CHANGED = 1e-4


def half_mask(left: bool, size: int = 128, images: int = 1) -> Tensor:
    mask = torch.zeros(images, size, size)
    half = slice(0, size // 2) if left else slice(size // 2, size)
    mask[:, :, half] = 1.0
    return mask


@pytest.fixture
def style(models: Path) -> Any:
    return encode(load_adapter(models), make_clip_vision("h"), picture(1))


@pytest.fixture
def two_styles(models: Path) -> Any:
    return encode(load_adapter(models), make_clip_vision("h"), picture(1), picture(2))


# Strength, window, chaining


def test_style_changes_the_picture_and_not_the_model_it_was_given(style: Any) -> None:
    model = make_unet("sd15")
    plain = sampled(model)
    changed = sampled(styled(model, style))
    assert relative_error(changed, plain) > CHANGED
    assert torch.equal(sampled(model), plain) and patches_on(model) == ()


@pytest.mark.parametrize(
    "settings",
    [{"strength": 0.0}, {"blocks": {"blocks": "custom", "weights": "output.3=0"}}]
    + [
        {"curve": {"curve": "custom", "points": "0:0, 1:0"}},
        {"start": 0.9999, "end": 1.0, "blocks": {"blocks": "layout"}},
    ],
    ids=["strength 0", "block weight 0", "curve at 0", "window that no step meets"],
)
def test_nothing_asked_for_leaves_the_model_bit_identical(style: Any, settings: dict[str, Any]) -> None:
    model = make_unet("sd15")
    ladder = {"denoise": 1.0, "steps": 1} if "start" in settings else {}
    assert torch.equal(sampled(styled(model, style, **settings), **ladder), sampled(model, **ladder))


def test_strength_is_the_product_of_strength_block_and_curve(style: Any) -> None:
    model = make_unet("sd15")
    expected = sampled(styled(model, style, strength=0.3))
    every = ", ".join(f"{block}=0.5" for block in patches_on(styled(model, style))[0].scope.blocks)
    blocks = {"blocks": "custom", "weights": every}
    curve = {"curve": "custom", "points": "0:0.6"}
    assert relative_error(sampled(styled(model, style, strength=1.0, blocks=blocks, curve=curve)), expected) <= SAME


def test_two_patches_of_half_strength_are_one_of_whole(style: Any) -> None:
    model = make_unet("sd15")
    half = styled(styled(model, style, strength=0.5), style, strength=0.5)
    assert len(patches_on(half)) == 2
    assert relative_error(sampled(half), sampled(styled(model, style))) <= SAME


def test_named_presets_are_the_blocks_of_the_family(style: Any) -> None:
    model = make_unet("sd15")
    named = {"blocks": "custom", "weights": "output.3, output.4=1, output.5=1.0"}
    expected = sampled(styled(model, style, blocks={"blocks": "style"}))
    assert torch.equal(sampled(styled(model, style, blocks=named)), expected)


# Weights of pictures


def test_weight_two_equals_connecting_the_picture_twice(models: Path) -> None:
    adapter, encoder, model = load_adapter(models), make_clip_vision("h"), make_unet("sd15")
    weighed = encode(adapter, encoder, picture(1), picture(2), weights="2, 1")
    twice = encode(adapter, encoder, picture(1), picture(1), picture(2))
    once = encode(adapter, encoder, picture(1), picture(2))
    expected = sampled(styled(model, twice))
    assert relative_error(sampled(styled(model, weighed)), expected) <= SAME
    assert relative_error(sampled(styled(model, once)), expected) > CHANGED


@pytest.mark.parametrize("variant", ["base", "plus", "full-face"])
def test_crops_of_a_tiled_picture_count_as_one_picture(models: Path, variant: str) -> None:
    """A panorama of three like crops weighs no more beside another picture than one of the crops would."""
    adapter, encoder, model = load_adapter(models, variant=variant), make_clip_vision("h"), make_unet("sd15")
    square, other = picture(1), picture(2)
    panorama = torch.cat([square] * 3, dim=2)
    tiled = encode(adapter, encoder, panorama, other, fit="tile")
    assert [len(each) for each in tiled.reference.pictures] == [3, 1]
    expected = sampled(styled(model, encode(adapter, encoder, square, other)))
    assert relative_error(sampled(styled(model, tiled)), expected) <= SAME


def test_weights_all_alike_change_nothing(models: Path) -> None:
    adapter, encoder, model = load_adapter(models), make_clip_vision("h"), make_unet("sd15")
    plain, alike = (encode(adapter, encoder, picture(1), picture(2), weights=text) for text in ("", "3, 3"))
    assert torch.equal(sampled(styled(model, alike)), sampled(styled(model, plain)))


def test_negative_picture_speaks_on_the_unconditional_side_only(models: Path) -> None:
    adapter, encoder, model = load_adapter(models), make_clip_vision("h"), make_unet("sd15")
    plain, steered = (encode(adapter, encoder, picture(1), negative=image) for image in (None, picture(5)))
    assert relative_error(sampled(styled(model, steered)), sampled(styled(model, plain))) > CHANGED
    assert torch.equal(sampled(styled(model, steered), cfg=1.0), sampled(styled(model, plain), cfg=1.0))


# Masks


@pytest.mark.parametrize("size", [8, 128, 333])
@pytest.mark.parametrize("edges", ["soft", "hard"])
def test_white_mask_of_any_size_is_no_mask(style: Any, size: int, edges: str) -> None:
    model = make_unet("sd15")
    masked = styled(model, style, mask=torch.ones(1, size, size), mask_edges=edges)
    assert relative_error(sampled(masked), sampled(styled(model, style))) <= SAME


def test_white_mask_over_several_pictures_is_no_mask(two_styles: Any) -> None:
    model = make_unet("sd15")
    masked = styled(model, two_styles, mask=torch.ones(1, 64, 64))
    assert relative_error(sampled(masked), sampled(styled(model, two_styles))) <= SAME


def test_chained_patches_under_complementary_masks_are_one_without(style: Any) -> None:
    model = make_unet("sd15")
    ramp = torch.linspace(0, 1, 128).expand(1, 128, 128)
    both = styled(styled(model, style, mask=ramp), style, mask=1 - ramp)
    # Each mask is rounded to 8 bits on its own.
    assert relative_error(sampled(both), sampled(styled(model, style))) <= 1e-2
    halves = styled(styled(model, style, mask=half_mask(True)), style, mask=half_mask(False))
    assert relative_error(sampled(halves), sampled(styled(model, style))) <= SAME


def test_mask_of_another_size_and_aspect_is_fitted(style: Any) -> None:
    model = make_unet("sd15")
    expected = sampled(styled(model, style, mask=half_mask(True)))
    for mask in (half_mask(True, 256), half_mask(True)[:, :64]):
        assert relative_error(sampled(styled(model, style, mask=mask)), expected) <= 1e-3


def test_soft_edges_keep_grey_and_hard_edges_cut_it(style: Any) -> None:
    model = make_unet("sd15")
    grey = torch.full((1, 128, 128), 128 / 255)
    soft = sampled(styled(model, style, mask=grey, mask_edges="soft"))
    assert relative_error(soft, sampled(styled(model, style, strength=128 / 255))) <= SAME
    hard = sampled(styled(model, style, mask=grey, mask_edges="hard"))
    assert relative_error(hard, sampled(styled(model, style))) <= SAME
    dark = torch.full((1, 128, 128), 127 / 255)
    assert relative_error(sampled(styled(model, style, mask=dark, mask_edges="hard")), sampled(model)) <= SAME


def test_mask_for_each_picture_gives_each_its_area(models: Path, two_styles: Any) -> None:
    adapter, encoder, model = load_adapter(models), make_clip_vision("h"), make_unet("sd15")
    masks = torch.cat([half_mask(True), half_mask(False)])
    one, other = (encode(adapter, encoder, picture(seed)) for seed in (1, 2))
    chained = styled(styled(model, one, mask=masks[:1]), other, mask=masks[1:])
    assert relative_error(sampled(styled(model, two_styles, mask=masks)), sampled(chained)) <= SAME


def test_weight_of_a_masked_picture_is_its_strength_there(models: Path) -> None:
    adapter, encoder, model = load_adapter(models), make_clip_vision("h"), make_unet("sd15")
    masks = torch.cat([half_mask(True), half_mask(False)])
    weighed = encode(adapter, encoder, picture(1), picture(2), weights="1, 0.3")
    one, other = (encode(adapter, encoder, picture(seed)) for seed in (1, 2))
    chained = styled(styled(model, one, mask=masks[:1]), other, mask=masks[1:], strength=0.3)
    assert relative_error(sampled(styled(model, weighed, mask=masks)), sampled(chained)) <= SAME


def test_mask_for_each_image_of_the_batch(style: Any) -> None:
    model = make_unet("sd15")
    masks = torch.cat([half_mask(True), half_mask(False), torch.ones(1, 128, 128)])
    found = sampled(styled(model, style, mask=masks), images=3)
    for image, mask in enumerate(masks):
        alone = sampled(styled(model, style, mask=mask[None]), images=3)
        assert relative_error(found[image], alone[image]) <= SAME


def test_as_many_masks_as_pictures_and_images_go_by_the_choice(two_styles: Any) -> None:
    model = make_unet("sd15")
    masks = torch.cat([half_mask(True), half_mask(False)])
    auto, by_picture, by_image = (
        sampled(styled(model, two_styles, mask=masks, masks_by=choice), images=2)
        for choice in ("auto", "per picture", "per image")
    )
    assert torch.equal(auto, by_picture)
    for image, mask in enumerate(masks):
        alone = sampled(styled(model, two_styles, mask=mask[None]), images=2)
        assert relative_error(by_image[image], alone[image]) <= SAME
    assert relative_error(by_image, by_picture) > CHANGED
    with pytest.raises(ValueError, match="3 masks for 2 reference pictures. Connect one mask for each picture"):
        styled(model, two_styles, mask=torch.ones(3, 64, 64), masks_by="per picture")


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_no_blocks_of_ones_own_are_those_of_style(models: Path, kind: str) -> None:
    encoder = make_clip_vision("h" if kind == "sd15" else "g")
    model, style = make_unet(kind), encode(load_adapter(models, kind), encoder, picture(1))
    (own,) = patches_on(styled(model, style, blocks={"blocks": "custom", "weights": ""}))
    (preset,) = patches_on(styled(model, style, blocks={"blocks": "style"}))
    assert own.scope.blocks == preset.scope.blocks


def test_wrong_count_of_masks_is_refused_when_the_batch_is_known(two_styles: Any) -> None:
    masked = styled(make_unet("sd15"), two_styles, mask=torch.ones(3, 64, 64))
    with pytest.raises(
        ValueError, match="3 masks for 2 reference pictures and 4 images. Connect one mask, one for each"
    ):
        sampled(masked, images=4)


def test_mask_is_not_changed_and_may_be_an_output_of_another_node(style: Any) -> None:
    mask = half_mask(True).expand(1, 128, 128)
    before = mask.clone()
    sampled(styled(make_unet("sd15"), style, mask=mask))
    assert torch.equal(mask, before)


# The choices, as ComfyUI's server passes them


@pytest.fixture(scope="module")
def server(comfyui: ComfyUIServer) -> ComfyUIServer:
    write_checkpoint("sd15", comfyui.models("checkpoints") / "instantstyle_sd15.safetensors")
    write_clip_vision("h", comfyui.models("clip_vision") / "instantstyle_h.safetensors")
    save_file(adapter_state_dict("sd15"), comfyui.models("ipadapter") / "instantstyle_base.safetensors")
    return comfyui


def prompt_with(**choices: Any) -> Prompt:
    settings = {"strength": 1.0, "start": 0.0, "end": 1.0, "blocks": "style", "curve": "constant"} | choices
    return {
        "model": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "instantstyle_sd15.safetensors"}},
        "vision": {"class_type": "CLIPVisionLoader", "inputs": {"clip_name": "instantstyle_h.safetensors"}},
        "image": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 255}},
        "adapter": {"class_type": "SemblanceLoadAdapter", "inputs": {"file": "instantstyle_base.safetensors"}},
        "reference": {
            "class_type": "SemblanceEncodeReference",
            "inputs": {
                "adapter": ["adapter", 0],
                "clip_vision": ["vision", 0],
                "pictures.picture0": ["image", 0],
                "combine": "concatenate",
                "fit": "crop",
            },
        },
        "style": {
            "class_type": "SemblanceInstantStyle",
            "inputs": {"model": ["model", 0], "reference": ["reference", 0]}
            | {name: value for name, value in settings.items() if value is not None},
        },
        "show": {"class_type": "SemblanceShowPatches", "inputs": {"model": ["style", 0]}},
    }


def shown(server: ComfyUIServer, prompt: Prompt) -> str:
    return server.run(prompt)["outputs"]["show"]["text"][0]


def test_presets_arrive_from_the_server(server: ComfyUIServer) -> None:
    text = shown(server, prompt_with(blocks="style + layout", curve="fade out"))
    blocks = "input.7=1, input.8=1, middle.0=1, output.3=1, output.4=1, output.5=1"
    assert f"1. InstantStyle (instantstyle_base.safetensors), strength 1, {blocks}, curve " in text


def test_values_nested_in_a_choice_arrive_from_the_server(server: ComfyUIServer) -> None:
    custom = {"blocks": "custom", "blocks.weights": "output.3=0.7, input.8=0.4"}
    curve = {"curve": "custom", "curve.points": "0:1, 1:0.25"}
    text = shown(server, prompt_with(**custom, **curve))
    assert "output.3=0.7, input.8=0.4, curve ((0.0, 1.0), (1.0, 0.25))" in text


@pytest.mark.parametrize("chosen", ["stile", "", None, 3])
@pytest.mark.parametrize(
    ("choice", "options"),
    [("blocks", "style, layout, style \\+ layout, all, custom"), ("curve", "constant, fade in, .*, custom")],
)
def test_unknown_choice_is_refused_before_anything_runs(
    server: ComfyUIServer, choice: str, options: str, chosen: Any
) -> None:
    """ComfyUI leaves an unknown choice out of what it validates and of what it executes."""
    with pytest.raises(PromptFailed, match=f"{choice} is missing or not on offer. Choose one of: {options}") as refusal:
        server.queue(prompt_with(**{choice: chosen}))
    assert refusal.value.node_id == "style" and refusal.value.node_type == "SemblanceInstantStyle"


def test_two_unknown_choices_are_refused_as_well(server: ComfyUIServer) -> None:
    with pytest.raises(PromptFailed, match="blocks is missing or not on offer"):
        server.queue(prompt_with(blocks="stile", curve="kurve"))


@pytest.mark.parametrize("name", ["weights", "points"])
def test_missing_value_of_a_custom_choice_is_named(server: ComfyUIServer, name: str) -> None:
    choice = {"weights": "blocks", "points": "curve"}[name]
    with pytest.raises(PromptFailed, match=f"Required input is missing: {name}"):
        server.queue(prompt_with(**{choice: "custom"}))


def test_wrong_block_turns_the_node_red_with_our_sentence(server: ComfyUIServer) -> None:
    with pytest.raises(
        PromptFailed, match=r"no block called 'output.1'.* blocks are: input.1, .*, output.11"
    ) as refusal:
        server.run(prompt_with(blocks="custom", **{"blocks.weights": "output.1=1"}))
    assert refusal.value.node_id == "style"


def test_limits_of_the_numbers_are_still_kept_by_the_server(server: ComfyUIServer) -> None:
    with pytest.raises(PromptFailed, match="strength"):
        server.queue(prompt_with(strength=99.0))


def test_strength_that_is_no_number_turns_the_node_red(server: ComfyUIServer) -> None:
    with pytest.raises(PromptFailed, match="strength is nan, which is not a number to calculate with"):
        server.run(prompt_with(strength=float("nan")))


def test_node_has_a_default_for_every_choice() -> None:
    schema = InstantStyle.define_schema()
    assert [entry.options[0].key for entry in schema.inputs if entry.id in ("blocks", "curve")] == ["style", "constant"]
