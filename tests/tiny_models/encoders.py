"""Tiny text encoders, image encoders and VAE, a sixteenth as wide as the real ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import comfy.clip_vision
import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.taesd.taesd
import comfy.text_encoders.sd2_clip
import torch
from comfy.supported_models_base import ClipTarget
from torch import nn

from .weights import seed_weights

ClipKind = Literal["sd15", "sdxl", "sd2"]
"""Which model's text encoders: CLIP-L; CLIP-L and OpenCLIP-bigG; OpenCLIP-H."""
VisionKind = Literal["l", "h", "g"]
CLIP_KINDS: tuple[ClipKind, ...] = get_args(ClipKind)
VISION_KINDS: tuple[VisionKind, ...] = get_args(VisionKind)

# Pictures and texts meet at these widths (real: 768, 1024, 1280).
TEXT_WIDTH: Mapping[VisionKind, int] = {"l": 48, "h": 64, "g": 88}
# Width of the patch tokens (real: 1024, 1280, 1664).
VISION_WIDTH: Mapping[VisionKind, int] = {"l": 64, "h": 80, "g": 104}
VISION_SIZE = 56  # pixels; 4 x 4 patches and the class token


def text_config(tower: VisionKind) -> dict[str, Any]:
    width = TEXT_WIDTH[tower]
    return {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "hidden_act": "quick_gelu" if tower == "l" else "gelu",
        "projection_dim": width,
    }


TEXT_CONFIGS = {f"clip_{tower}_model_config": text_config(tower) for tower in TEXT_WIDTH}


def clip_target(kind: ClipKind) -> ClipTarget:
    """The real tokenizer and the real text model's class, told to be narrow."""
    sd2 = comfy.text_encoders.sd2_clip
    tokenizer, model = {
        "sd15": (comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel),
        "sdxl": (comfy.sdxl_clip.SDXLTokenizer, comfy.sdxl_clip.SDXLClipModel),
        "sd2": (sd2.SD2Tokenizer, sd2.SD2ClipModel),
    }[kind]
    return ClipTarget(tokenizer, narrow(model))


def narrow(model_class: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    def build(*, model_options: dict[str, Any], **options: Any) -> nn.Module:
        return model_class(model_options={**model_options, **TEXT_CONFIGS}, **options)

    return build


def make_clip(kind: ClipKind = "sd15", seed: int = 0) -> comfy.sd.CLIP:
    clip = comfy.sd.CLIP(clip_target(kind), model_options={"dtype": torch.float32})
    seed_weights(clip.cond_stage_model, seed)
    return clip


def vision_config(kind: VisionKind) -> dict[str, Any]:
    return {
        "model_type": "clip_vision_model",
        "image_size": VISION_SIZE,
        "patch_size": 14,
        "num_channels": 3,
        "hidden_size": VISION_WIDTH[kind],
        "intermediate_size": 2 * VISION_WIDTH[kind],
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "hidden_act": "quick_gelu" if kind == "l" else "gelu",
        "projection_dim": TEXT_WIDTH[kind],
    }


def make_clip_vision(kind: VisionKind = "h", seed: int = 0) -> comfy.clip_vision.ClipVisionModel:
    encoder = comfy.clip_vision.ClipVisionModel(vision_config(kind))
    seed_weights(encoder.model, seed)
    return encoder


def make_vae(seed: int = 0, channels: int = 4) -> comfy.sd.VAE:
    """A VAE of the small TAESD kind, the one whose every size the host reads from the file."""
    model = comfy.taesd.taesd.TAESD(latent_channels=channels)
    seed_weights(model, seed)
    return comfy.sd.VAE(sd=model.state_dict(), dtype=torch.float32)
