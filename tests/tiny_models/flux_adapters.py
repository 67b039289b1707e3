"""Tiny IP-Adapters for Flux in their published layouts, and the SigLIP encoder that one of them reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import comfy.clip_vision
from safetensors.torch import save_file
from torch import Tensor

from .adapters import linear, norm
from .weights import seed_weights, seeded_state_dict

FluxForm = Literal["InstantX", "XLabs"]
FLUX_FORMS: tuple[FluxForm, ...] = ("InstantX", "XLabs")
SIGLIP_WIDTH = 72
SIGLIP_HEADS = 4


def flux_adapter_state_dict(
    form: FluxForm,
    *,
    double: int = 2,
    single: int = 3,
    width: int = 32,
    text_width: int = 20,
    tokens: int | None = None,
    clip_width: int | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """An adapter for a Flux of so many blocks, `width` channels and `text_width` channels of text, as files name it.

    InstantX's `.bin` holds the same names in nested dictionaries. `tokens` are 8 and 4 when left out (real: 128, and 4
    or 16).
    """
    many = tokens or (8 if form == "InstantX" else 4)
    shapes: dict[str, tuple[int, ...]]
    if form == "InstantX":
        seen = clip_width or SIGLIP_WIDTH
        shapes = linear("image_proj.proj.0", seen, 2 * seen) | linear("image_proj.proj.2", 2 * seen, many * text_width)
        shapes |= norm("image_proj.norm", text_width)
        for number in range(double + single):
            for part in ("to_k_ip", "to_v_ip"):
                shapes[f"ip_adapter.{number}.{part}.weight"] = (width, text_width)
        return seeded_state_dict(shapes, seed)
    shapes = linear("ip_adapter_proj_model.proj", clip_width or 48, many * text_width)
    shapes |= norm("ip_adapter_proj_model.norm", text_width)
    for number in range(double):
        for part in ("k", "v"):
            name = f"double_blocks.{number}.processor.ip_adapter_double_stream_{part}_proj"
            shapes |= linear(name, text_width, width)
    return seeded_state_dict(shapes, seed)


def siglip_config() -> dict[str, Any]:
    return {
        "model_type": "siglip_vision_model",
        "image_size": 56,
        "patch_size": 14,
        "num_channels": 3,
        "hidden_size": SIGLIP_WIDTH,
        "intermediate_size": 2 * SIGLIP_WIDTH,
        "num_attention_heads": SIGLIP_HEADS,
        "num_hidden_layers": 3,
        "hidden_act": "gelu_pytorch_tanh",
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }


def make_siglip(seed: int = 0) -> comfy.clip_vision.ClipVisionModel:
    """A CLIP_VISION as ComfyUI makes it of a SigLIP file: without the head."""
    encoder = comfy.clip_vision.ClipVisionModel(siglip_config())
    seed_weights(encoder.model, seed)
    return encoder


def siglip_head(seed: int = 0) -> dict[str, Tensor]:
    """The tensors of the file that ComfyUI leaves out."""
    width, head = SIGLIP_WIDTH, "vision_model.head"
    shapes = {f"{head}.probe": (1, 1, width), f"{head}.attention.in_proj_weight": (3 * width, width)}
    shapes |= {f"{head}.attention.in_proj_bias": (3 * width,)}
    shapes |= linear(f"{head}.attention.out_proj", width, width) | norm(f"{head}.layernorm", width)
    shapes |= linear(f"{head}.mlp.fc1", width, 2 * width) | linear(f"{head}.mlp.fc2", 2 * width, width)
    return seeded_state_dict(shapes, seed)


def write_siglip(path: Path, seed: int = 0, with_head: bool = True) -> Path:
    """The file of `make_siglip`, with the head as published."""
    tensors = make_siglip(seed).model.state_dict() | (siglip_head(seed) if with_head else {})
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, path)
    return path
