"""InstantStyle equals the authors' code and diffusers on every frozen case, in float32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from semblance.attention.adapters.checkpoint import flatten
from semblance.attention.engine.scope import ImageMask, Scope
from semblance.attention.families import SD15, SDXL
from semblance.attention.functional.masks import fit_mask, mask_on_grid
from semblance.attention.methods.instantstyle import InstantStyle
from semblance.attention.references.style import StyleReference
from semblance.host.binding.model import add_patch, map_model
from semblance.host.instantstyle.adapter import LoadedAdapter, manage_adapter
from semblance.host.instantstyle.vision import encode_crops, encode_nothing
from semblance.host.pictures import fit_picture
from semblance.tests.support.frozen_cases import furthest, load_reference
from semblance.tests.support.oracles import oracle_clip_vision, oracle_unet
from semblance.tests.support.speeds import one_family, slow_but

KINDS = ("sd15", "sdxl")
CASES = [(kind, name) for kind in KINDS for name in load_reference(f"ip_adapter_{kind}")[1]["scales"]]
SDXL_CASES = CASES[-1:]
"""Those tried at every change."""
FAMILY = {"sd15": SD15, "sdxl": SDXL}


def adapter_of(kind: str, variant: str) -> LoadedAdapter:
    return manage_adapter(variant, flatten(load_reference(f"ip_adapter_{kind}.adapter_{variant}")[0]))


def reference_of(case: dict[str, Tensor], pictures: Sequence[int], is_global: bool) -> StyleReference:
    if is_global:
        embeddings = case["mid.image_embeds"]
        negative = torch.zeros(1, embeddings.shape[-1])
    else:
        embeddings, negative = case["mid.hidden_states_m2"], case["mid.hidden_states_m2_uncond"]
    return StyleReference(tuple(embeddings[i : i + 1] for i in pictures), negative, (1.0,) * len(pictures))


def block_weights(scale: Any, blocks: Sequence[str]) -> dict[str, Any]:
    """diffusers' set_ip_adapter_scale grammar by our block names; an entry may stay a list, one number a picture."""
    if not isinstance(scale, dict):
        return dict.fromkeys(blocks, scale)
    weights: dict[str, Any] = dict.fromkeys(blocks, 0.0)
    for block in blocks:
        part, number = block.split(".")
        group = {"input": "down", "middle": "mid", "output": "up"}[part]
        entry = scale.get(group, 0.0)
        # diffusers: up_blocks.b.attentions.j is output 3b + j, down_blocks.b.attentions.j is input 3b + j + 1.
        place = int(number) - (part == "input")
        if isinstance(entry, dict):
            entry = entry.get(f"block_{place // 3}", 0.0)
        if isinstance(entry, list):
            entry = entry[0] if len(entry) == 1 else entry[place % 3]
        weights[block] = entry
    return weights


def style_patches(kind: str, name: str, model_map: Any) -> list[tuple[InstantStyle, LoadedAdapter]]:
    """The case as nodes would build it: a patch for each adapter, or with masks one for each picture."""
    case, metadata = load_reference(f"ip_adapter_{kind}")
    settings = metadata["scales"][name]
    scales = settings["scale"] if len(settings["adapters"]) > 1 else [settings["scale"]]
    patches: list[tuple[InstantStyle, LoadedAdapter]] = []
    for variant, scale in zip(settings["adapters"], scales, strict=True):
        adapter = adapter_of(kind, variant)
        numbers = adapter.numbers_for(model_map)
        pictures = pictures_of(name, variant, metadata["n_images"])
        weights = block_weights(scale, model_map.family.blocks)
        areas = pictures if settings["masks"] else [None]
        for order, picture in enumerate(areas):
            own = {b: w[order] if isinstance(w, list) else w for b, w in weights.items()}
            seen = pictures if picture is None else [picture]
            mask = None
            if picture is not None:  # mask i belongs to picture i, the last mask to a picture that stands alone
                area = picture if len(pictures) > 1 else metadata["n_images"]
                mask = ImageMask(case["in.mask_raw_u8"][[area]] / 255, feather=False)
            tokens = adapter.image_tokens(reference_of(case, seen, adapter.layout.is_global))
            patches.append((InstantStyle(tokens, adapter, numbers, Scope(own, mask=mask)), adapter))
    return patches


def pictures_of(name: str, variant: str, images: int) -> list[int]:
    if variant == "plus":
        return [0] if "image0" in name else [images]
    return list(range(images)) if name.startswith(("multi", "masked")) and "single" not in name else [0]


def predicted_noise(
    model: Any, case: dict[str, Tensor], timestep: int, rows: slice | list[int] = slice(None)
) -> Tensor:
    """The network's output for the case's latents, which stand in the scaling the UNet sees."""
    sigma = model.model.model_sampling.sigmas[timestep]
    x = case["in.latent_vp"][rows] * (1 + sigma**2).sqrt()
    options = {**model.model_options["transformer_options"], "cond_or_uncond": [1, 0]}
    vector = {"y": case["in.adm_y"][rows]} if "in.adm_y" in case else {}
    with torch.no_grad():
        clean = model.model.apply_model(
            x, sigma.expand(len(x)), c_crossattn=case["in.context"][rows], transformer_options=options, **vector
        )
    return (x - clean) / sigma


@pytest.mark.parametrize(("kind", "name"), slow_but(CASES, lambda case: case[0] == "sd15" or case in SDXL_CASES))
def test_equals_diffusers_and_the_authors_code(kind: str, name: str) -> None:
    case, metadata = load_reference(f"ip_adapter_{kind}")
    model = oracle_unet(kind)
    for patch, _ in style_patches(kind, name, map_model(model)):
        model = add_patch(model, patch)
    found = predicted_noise(model, case, metadata["timestep"])
    assert furthest(found, case[f"out.{name}"]) <= 1e-4


@one_family()
def test_one_patch_with_a_mask_for_each_picture_equals_diffusers(kind: str) -> None:
    case, metadata = load_reference(f"ip_adapter_{kind}")
    model, adapter = oracle_unet(kind), adapter_of(kind, "base")
    pictures = range(metadata["n_images"])
    scales = metadata["scales"]["masked_per_image"]["scale"]["mid"][0]
    reference = reference_of(case, pictures, is_global=True)
    reference = StyleReference(reference.pictures, reference.negative, tuple(scales))
    mask = ImageMask(case["in.mask_raw_u8"][: len(pictures)] / 255, feather=False)
    scope = Scope(FAMILY[kind].preset("all"), mask=mask)
    patch = InstantStyle(adapter.image_tokens(reference), adapter, adapter.numbers_for(map_model(model)), scope)
    found = predicted_noise(add_patch(model, patch), case, metadata["timestep"])
    assert furthest(found, case["out.masked_per_image"]) <= 1e-4


@pytest.mark.parametrize(
    ("preset", "official"), [("all", "full"), ("style", "style"), ("style + layout", "style_layout")]
)
@pytest.mark.parametrize("kind", KINDS)
def test_presets_equal_the_authors_target_blocks(kind: str, preset: str, official: str) -> None:
    case, metadata = load_reference(f"ip_adapter_{kind}")
    model, adapter = oracle_unet(kind), adapter_of(kind, "base")
    tokens = adapter.image_tokens(reference_of(case, [0], is_global=True))
    patch = InstantStyle(tokens, adapter, adapter.numbers_for(map_model(model)), Scope(FAMILY[kind].preset(preset)))
    found = predicted_noise(add_patch(model, patch), case, metadata["timestep"])
    assert furthest(found, case[f"official_instantstyle.{official}"]) <= 1e-4


@pytest.mark.parametrize("variant", ["base", "plus"])
@pytest.mark.parametrize("kind", KINDS)
def test_image_tokens_equal_the_official_projectors(kind: str, variant: str) -> None:
    case, _ = load_reference(f"ip_adapter_{kind}")
    tokens = adapter_of(kind, variant).image_tokens(reference_of(case, [0], variant == "base"))
    torch.testing.assert_close(
        tokens.conditional[0], case[f"mid.tokens_{variant}_cond_image0"][0], atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(tokens.unconditional[0], case[f"mid.tokens_{variant}_uncond"][0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_are_seen_as_the_official_encoder_sees_them(kind: str) -> None:
    """From the pictures themselves: fitted as CLIPImageProcessor does, encoded by ComfyUI's encoder."""
    case, metadata = load_reference(f"ip_adapter_{kind}")
    encoder = oracle_clip_vision()
    pictures = [case[f"in.image_u8.{i}"].float() / 255 for i in range(metadata["n_images"] + 1)]
    crops = torch.cat([fit_picture(picture, encoder.image_size, "crop", encoder.image_mean) for picture in pictures])
    torch.testing.assert_close(encode_crops(encoder, crops, True), case["mid.image_embeds"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(encode_crops(encoder, crops, False), case["mid.hidden_states_m2"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        encode_nothing(encoder, False), case["mid.hidden_states_m2_uncond"], atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("path", ["bigG", "vit_h"])
def test_content_subtraction_equals_the_authors_code(path: str) -> None:
    kind = {"bigG": "sdxl", "vit_h": "sd15"}[path]
    subtraction, _ = load_reference("content_subtraction")
    case, metadata = load_reference(f"ip_adapter_{kind}")
    model, adapter = oracle_unet(kind), adapter_of(kind, "base")
    embedding = subtraction[f"{path}.in.image_embed"]
    reference = StyleReference((embedding,), torch.zeros_like(embedding), (1.0,))
    words = subtraction[f"{path}.in.content_pooled"][0]
    scales = [name.rpartition("_")[2] for name in subtraction if name.startswith(f"{path}.out.tokens_cond.scale_")]
    assert len(scales) >= 3
    for scale in scales:
        tokens = adapter.image_tokens(reference.without(words, "content", float(scale)))
        for side, found in (("cond", tokens.conditional[0]), ("uncond", tokens.unconditional[0])):
            expected = subtraction[f"{path}.out.tokens_{side}.scale_{scale}"][0]
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        patch = InstantStyle(
            tokens, adapter, adapter.numbers_for(map_model(model)), Scope(FAMILY[kind].preset("style"))
        )
        rows = [0, metadata["batch_prompts"]]
        found = predicted_noise(add_patch(model, patch), case, metadata["timestep"], rows)
        assert furthest(found, subtraction[f"{path}.out.unet_style_block.scale_{scale}"]) <= 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_masks_come_down_to_the_grid_as_in_diffusers(kind: str) -> None:
    """The unit cases whose tokens fill the picture's own aspect; on others diffusers pads or cuts the tail."""
    case, metadata = load_reference(f"ip_adapter_{kind}")
    raw = case["in.mask_raw_u8"] / 255
    height, width = case["in.mask_binarised"].shape[1:]
    assert torch.equal(fit_mask(raw, height, width, feather=False).bool(), case["in.mask_binarised"])
    square = [unit for unit in metadata["mask_unit"] if unit["source"].startswith("in.")]
    assert square
    for unit in square:
        side = int(unit["num_queries"] ** 0.5)
        first = metadata["n_images"] if "n_images" in unit["source"] else 0
        mask = case["in.mask_binarised"][first : first + unit["n"]].float()
        for place, row in enumerate(mask_on_grid(mask, side, side)):
            expected = case[f"unit.mask_down.{unit['i']}.{place}.out"]
            torch.testing.assert_close(row, expected, atol=1e-5, rtol=1e-5)
