"""Tiny models as files, and the host taught to recognise them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.clip_vision
import comfy.supported_models
from safetensors.torch import save_file
from torch import Tensor

from .encoders import VISION_KINDS, VISION_WIDTH, VisionKind, make_clip, make_clip_vision, make_vae, vision_config
from .unets import SUPPORTED, Family, make_unet


def register_tiny_supported_models() -> None:
    """Lets the host's stock loaders open tiny files; real files are recognised as before, by their widths."""
    known = comfy.supported_models.models
    if SUPPORTED["sd15"] not in known:
        known[:0] = SUPPORTED.values()
        comfy.clip_vision.load_clipvision_from_sd = tiny_clip_vision_or(comfy.clip_vision.load_clipvision_from_sd)


def tiny_clip_vision_or(load_real: Any) -> Any:
    """The host names an image encoder by its number of layers and takes the widths from there."""

    def load(state_dict: dict[str, Tensor], prefix: str = "", convert_keys: bool = False) -> Any:
        embedding = state_dict.get("vision_model.embeddings.class_embedding")
        for kind in VISION_KINDS:
            if embedding is not None and len(embedding) == VISION_WIDTH[kind]:
                encoder = comfy.clip_vision.ClipVisionModel(vision_config(kind))
                encoder.load_sd(state_dict)
                return encoder
        return load_real(state_dict, prefix, convert_keys)

    return load


def write_checkpoint(kind: Family, path: Path, seed: int = 0) -> Path:
    """A checkpoint with UNet, text encoders and VAE, for CheckpointLoaderSimple; 45 MB (sd15) or 110 MB (sdxl)."""
    parts = {
        "model.diffusion_model.": make_unet(kind, seed).model.diffusion_model.state_dict(),
        "first_stage_model.": make_vae(seed).first_stage_model.state_dict(),
        "": saved_text_encoders(kind, seed),
    }
    save_file(
        {prefix + name: own_copy(tensor) for prefix, part in parts.items() for name, tensor in part.items()}, path
    )
    return path


def saved_text_encoders(kind: Family, seed: int) -> dict[str, Tensor]:
    """Text encoder weights under the names checkpoints have for them."""
    weights = make_clip(kind, seed).cond_stage_model.state_dict()
    return SUPPORTED[kind]({}).process_clip_state_dict_for_saving(weights)


def write_vae(path: Path, channels: int, seed: int = 0) -> Path:
    """A VAE for VAELoader."""
    weights = make_vae(seed, channels).first_stage_model.state_dict()
    save_file({name: own_copy(tensor) for name, tensor in weights.items()}, path)
    return path


def write_clip_vision(kind: VisionKind, path: Path, seed: int = 0) -> Path:
    """An image encoder file for CLIPVisionLoader."""
    weights = make_clip_vision(kind, seed).model.state_dict()
    save_file({name: own_copy(tensor) for name, tensor in weights.items()}, path)
    return path


def own_copy(tensor: Tensor) -> Tensor:
    """Safetensors refuses tensors that share memory."""
    return tensor.detach().clone().contiguous()
