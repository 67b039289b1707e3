"""Adapter files are told by the shapes of their tensors; all others are named and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from semblance.attention.adapters.checkpoint import UnknownAdapter, flatten, recognise
from semblance.host.instantstyle.adapter import manage_adapter
from semblance.tests.tiny_models import (
    Family,
    adapter_state_dict,
    controlnet_state_dict,
    diffusers_unet,
    lora_state_dict,
    make_clip,
    make_clip_vision,
    make_unet,
)
from semblance.tests.tiny_models.adapters import nested

FAMILIES: tuple[Family, ...] = ("sd15", "sdxl")
LAYERS = {"sd15": 16, "sdxl": 70}
TEXT = {"sd15": 48, "sdxl": 136}


def without(tensors: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name not in names}


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize(
    ("variant", "found", "tokens", "clip_width"),
    [("base", "base", 4, {"sd15": 64, "sdxl": 88}), ("plus", "plus", 16, 80), ("full-face", "full", 257, 80)],
)
def test_the_variant_and_its_sizes_are_read_off_the_shapes(
    kind: Family, variant: Any, found: str, tokens: int, clip_width: Any
) -> None:
    layout = recognise(adapter_state_dict(kind, variant))
    expected = clip_width[kind] if isinstance(clip_width, dict) else clip_width
    assert (layout.variant, layout.tokens, layout.clip_width) == (found, tokens, expected)
    assert (layout.text_width, len(layout.widths)) == (TEXT[kind], LAYERS[kind])
    assert list(layout.widths) == list(range(1, 2 * LAYERS[kind], 2))
    assert layout.is_global == (variant == "base")


def test_the_sizes_of_a_plus_projector_are_read_too() -> None:
    layout = recognise(adapter_state_dict("sd15", "plus"))
    assert (layout.resampler_width, layout.resampler_depth, layout.resampler_heads) == (48, 4, 2)


@pytest.mark.parametrize("tokens", [4, 16])
def test_a_global_adapter_may_have_any_number_of_tokens(tokens: int) -> None:
    assert recognise(adapter_state_dict("sd15", "base", tokens=tokens)).tokens == tokens


@pytest.mark.parametrize("variant", ["base", "plus", "full-face"])
def test_a_nested_bin_and_a_flat_safetensors_are_one_file(variant: Any) -> None:
    tensors = adapter_state_dict("sd15", variant)
    flat = flatten(nested(tensors))
    assert set(flat) == set(tensors) and all(flat[name] is tensors[name] for name in tensors)
    assert recognise(flat) == recognise(flatten(tensors))


def test_names_of_the_training_code_are_understood() -> None:
    tensors = adapter_state_dict("sd15", "base")
    raw = {
        name.replace("ip_adapter.", "adapter_modules.").replace("image_proj.", "image_proj_model."): tensor
        for name, tensor in tensors.items()
    }
    assert recognise(flatten(raw)) == recognise(tensors)


def trained(kind: Family, variant: Any = "base", prefix: str = "unet.") -> dict[str, Tensor]:
    """The adapter as the authors' training script leaves it: the weights in the whole UNet of diffusers, once each."""
    published = adapter_state_dict(kind, variant)
    unet = diffusers_unet(kind, make_unet(kind).model.diffusion_model)
    tensors = {f"{prefix}{name}": weight for name, weight in unet.state_dict().items()}
    for number, name in enumerate(unet.attn_processors):  # in their order the published files number them
        for part in ("to_k_ip", "to_v_ip"):
            if f"ip_adapter.{number}.{part}.weight" in published:
                tensors[f"{prefix}{name}.{part}.weight"] = published[f"ip_adapter.{number}.{part}.weight"]
    projector = {name: tensor for name, tensor in published.items() if name.startswith("image_proj.")}
    return tensors | {name.replace("image_proj.", "image_proj_model."): tensor for name, tensor in projector.items()}


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("variant", ["base", "plus"])
def test_an_adapter_straight_from_the_training_script_is_the_published_one(kind: Family, variant: Any) -> None:
    published = adapter_state_dict(kind, variant)
    adapter = manage_adapter("model.safetensors", flatten(trained(kind, variant)))
    assert adapter.layout == recognise(published)
    weights = adapter.patcher.model.state_dict()
    assert set(weights) == set(published)
    assert all(torch.equal(weights[name], published[name]) for name in published)


def test_the_precision_is_the_adapters_and_not_that_of_the_unet_beside_it() -> None:
    tensors = trained("sd15")
    for name in tensors:
        if "_ip" in name or name.startswith("image_proj"):
            tensors[name] = tensors[name].half()
    weights = manage_adapter("model.safetensors", flatten(tensors)).patcher.model.state_dict()
    assert {weight.dtype for weight in weights.values()} == {torch.float16}


def test_numbers_in_the_file_stay_where_the_unet_holds_the_weights_too() -> None:
    """The script's `pytorch_model.bin` names every weight twice."""
    published = adapter_state_dict("sd15")
    doubled = trained("sd15") | {n.replace("ip_adapter.", "adapter_modules."): t for n, t in published.items()}
    assert recognise(flatten(doubled)) == recognise(published)


@pytest.mark.parametrize(
    ("text_width", "clip_width", "says"),
    [
        (
            768,
            1024,
            "base (or light) for SD 1.5, 4 image tokens, 2 layers, needs OpenCLIP ViT-H (1024-wide embeddings)",
        ),
        (
            2048,
            1280,
            "base (or light) for SDXL, 4 image tokens, 2 layers, needs OpenCLIP ViT-bigG (1280-wide embeddings)",
        ),
        (
            1024,
            1024,
            "base (or light) for SD 2.x, 4 image tokens, 2 layers, needs OpenCLIP ViT-H (1024-wide embeddings)",
        ),
        (
            640,
            512,
            "base (or light) for 640-wide, 4 image tokens, 2 layers, needs an image encoder (512-wide embeddings)",
        ),
    ],
)
def test_a_layout_says_for_which_model_and_encoder_it_is(text_width: int, clip_width: int, says: str) -> None:
    assert str(recognise(small_adapter(text_width, clip_width))) == says


def small_adapter(text_width: int = 768, clip_width: int = 1024) -> dict[str, Tensor]:
    """A base adapter of two layers, without the memory of a real one."""
    names = [f"ip_adapter.{number}.to_{part}_ip.weight" for number in (1, 3) for part in ("k", "v")]
    return {
        "image_proj.proj.weight": torch.empty(4 * text_width, clip_width, device="meta"),
        "image_proj.proj.bias": torch.empty(4 * text_width, device="meta"),
        "image_proj.norm.weight": torch.empty(text_width, device="meta"),
        "image_proj.norm.bias": torch.empty(text_width, device="meta"),
        **{name: torch.empty(320, text_width, device="meta") for name in names},
    }


def face_id(**more: Tensor) -> dict[str, Tensor]:
    """The projector of a FaceID or Portrait adapter: two layers and a norm."""
    tensors = {name: tensor for name, tensor in small_adapter().items() if name.startswith("ip_adapter.")}
    for layer in (0, 2):
        tensors[f"image_proj.proj.{layer}.weight"] = torch.empty(8, 8)
        tensors[f"image_proj.proj.{layer}.bias"] = torch.empty(8)
    return {**tensors, "image_proj.norm.weight": torch.empty(8), "image_proj.norm.bias": torch.empty(8), **more}


def tensors_of(*names: str) -> dict[str, Tensor]:
    return {name: torch.empty(2, 2) for name in names}


FOREIGN = {
    "portrait": (lambda: face_id(), "a FaceID or Portrait IP-Adapter, which needs face recognition"),
    "faceid": (
        lambda: face_id(**tensors_of("ip_adapter.1.to_q_lora.down.weight")),
        "a FaceID IP-Adapter, which needs face recognition",
    ),
    "faceid plus": (
        lambda: face_id(**tensors_of("image_proj.perceiver_resampler.proj_in.weight")),
        "a FaceID IP-Adapter, which needs face recognition",
    ),
    "flux": (lambda: tensors_of("double_blocks.0.processor.ip_adapter_double_stream_k_proj.weight"), "for Flux"),
    "checkpoint": (
        lambda: tensors_of("model.diffusion_model.out.0.weight", "first_stage_model.x"),
        "a whole checkpoint",
    ),
    "diffusion model": (lambda: make_unet("sd15").model.diffusion_model.state_dict(), "a diffusion model"),
    "image encoder": (lambda: make_clip_vision("h").model.state_dict(), "a CLIP image encoder"),
    "text encoder": (lambda: make_clip("sd15").cond_stage_model.clip_l.transformer.state_dict(), "a text encoder"),
    "lora": (lambda: tensors_of("lora_unet_input_blocks_1_1_proj_in.lora_down.weight"), "a LoRA"),
    "our lora": (lambda: lora_state_dict(make_unet("sd15")), "a LoRA"),
    "lora of diffusers": (lambda: tensors_of("unet.mid_block.attentions.0.proj_in.lora.down.weight"), "a LoRA"),
    "lora of processors": (lambda: tensors_of("unet.mid_block.attn2.processor.to_q_lora.down.weight"), "a LoRA"),
    "unet of diffusers": (lambda: tensors_of("unet.mid_block.attentions.0.proj_in.weight"), "a diffusion model"),
    "trained half": (
        lambda: {name: tensor for name, tensor in trained("sd15").items() if name.startswith("unet.")},
        "half of an IP-Adapter",
    ),
    "controlnet": (lambda: {f"control_model.{n}": t for n, t in controlnet_state_dict("sd15").items()}, "a ControlNet"),
    "bare controlnet": (lambda: controlnet_state_dict("sd15"), "a ControlNet"),
    "controlnet of diffusers": (lambda: tensors_of("down_blocks.0.w", "controlnet_mid_block.w"), "a ControlNet"),
    "vae": (lambda: tensors_of("encoder.conv_in.weight", "decoder.conv_in.weight"), "a VAE"),
    "embedding": (lambda: tensors_of("emb_params"), "a textual-inversion embedding"),
    "half": (lambda: adapter_part("ip_adapter."), "half of an IP-Adapter"),
    "other half": (lambda: adapter_part("image_proj."), "half of an IP-Adapter"),
    "unknown": (lambda: tensors_of("spam.weight"), "of an unknown kind (its first tensor is 'spam.weight')"),
    "empty": (dict, "empty of tensors"),
}


def adapter_part(prefix: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in small_adapter().items() if name.startswith(prefix)}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_of_another_kind_is_refused_by_name(name: str) -> None:
    make, kind = FOREIGN[name]
    with pytest.raises(UnknownAdapter) as refused:
        recognise(flatten(make()))
    sentence = str(refused.value)
    assert sentence.startswith("This file is ") and kind in sentence
    assert "Choose a base" in sentence and "huggingface.co/h94/IP-Adapter" in sentence


@pytest.mark.parametrize("variant", ["base", "plus", "full-face"])
def test_an_adapter_with_any_one_tensor_missing_is_refused_in_a_sentence(variant: Any) -> None:
    tensors = adapter_state_dict("sd15", variant)
    for name in tensors:
        if name.startswith("ip_adapter.") and not name.startswith(("ip_adapter.1.", "ip_adapter.31.")):
            continue  # layers are alike
        with pytest.raises(
            UnknownAdapter, match="incomplete or of an unknown layout.*Download it again from huggingface.co"
        ):
            manage_adapter("adapter", without(tensors, name))


@pytest.mark.parametrize(
    "name", ["ip_adapter.29.to_k_ip.weight", "image_proj.latents", "image_proj.layers.2.0.to_kv.weight"]
)
def test_an_adapter_with_a_tensor_of_another_shape_is_refused_in_a_sentence(name: str) -> None:
    tensors = adapter_state_dict("sd15", "plus")
    for shape in ((), (3,), (3, 3), (1, 3, 3, 3)):
        with pytest.raises(UnknownAdapter, match="incomplete or of an unknown layout"):
            manage_adapter("adapter", {**tensors, name: torch.zeros(shape)})


@pytest.mark.parametrize(
    "name", ["ip_adapter.to_k_ip.weight", "ip_adapter.one.to_k_ip.weight", "ip_adapter.33.to_k_ip.weight"]
)
def test_an_adapter_with_a_layer_under_a_strange_number_is_refused_in_a_sentence(name: str) -> None:
    with pytest.raises(UnknownAdapter, match="incomplete or of an unknown layout"):
        manage_adapter("adapter", {**adapter_state_dict("sd15", "base"), name: torch.zeros(2, 2)})


def test_what_is_not_a_tensor_does_not_count() -> None:
    tensors: dict[str, Any] = {**adapter_state_dict("sd15", "base"), "epoch": 3, "notes": {"author": "nobody"}}
    assert recognise(flatten(tensors)) == recognise(adapter_state_dict("sd15", "base"))


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_an_adapter_from_a_file_has_its_weights_and_precision(tmp_path: Path, suffix: str, dtype: torch.dtype) -> None:
    from safetensors.torch import save_file

    from semblance.host.files import load_tensors

    tensors = {name: tensor.to(dtype) for name, tensor in adapter_state_dict("sd15", "plus").items()}
    path = tmp_path / f"adapter.{suffix}"
    torch.save(nested(tensors), path) if suffix == "bin" else save_file(tensors, path)
    adapter = manage_adapter("adapter", flatten(load_tensors(path)))
    kept = adapter.patcher.model.state_dict()
    assert set(kept) == set(tensors)
    assert all(torch.equal(kept[name], tensors[name]) and kept[name].dtype == dtype for name in tensors)
    tokens = torch.randn(2, 16, 48)
    key, value = adapter.keys_values(31, tokens)
    torch.testing.assert_close(key, tokens @ tensors["ip_adapter.31.to_k_ip.weight"].float().T)
    torch.testing.assert_close(value, tokens @ tensors["ip_adapter.31.to_v_ip.weight"].float().T)
