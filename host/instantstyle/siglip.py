"""SigLIP's embedding of a whole picture. ComfyUI's encoder gives patch states alone; the rest is read from its file."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...attention.adapters.encoders import SIGLIP
from ...attention.adapters.siglip import PREFIX, PROBE, PoolingHead
from ..binding.carried import KEY
from ..files import CLIP_VISION, file_names, find_file

SIGLIP_MODEL = "siglip_vision_model"
NORM = "vision_model.post_layernorm."
"""The last layer that ComfyUI reads, by which the file of an encoder is known."""
REMEMBERED = 512
"""Files whose contents are remembered, while they stay as they are."""


def check_siglip(encoder: Any) -> None:
    """Raises ValueError unless the embedding of whole pictures can be made with this encoder, as adapters know it."""
    _head_of(encoder)


def pooled(encoder: Any, states: Tensor) -> Tensor:
    """The embedding of pictures (crops, channels), from their normalised patch states (crops, patches, channels)."""
    with torch.no_grad():
        return _head_of(encoder)(states)


def _head_of(encoder: Any) -> PoolingHead:
    """The head that belongs to an encoder, read once and freed with it. It is small and stays on the CPU."""
    name = f"{KEY}_head"
    if encoder.patcher.get_attachment(name) is None:
        encoder.patcher.set_attachments(name, _found(encoder))
    return encoder.patcher.get_attachment(name)


def _found(encoder: Any) -> PoolingHead:
    for name in file_names(CLIP_VISION):
        path = find_file(name, CLIP_VISION)
        status = path.stat()
        if _has_head(path, status.st_size, status.st_mtime_ns) and _is_of(path, encoder):
            return _read_head(path, name, encoder.config["num_attention_heads"])
    raise ValueError(
        f"The adapter reads {SIGLIP.name}'s embedding of a whole picture. ComfyUI leaves out the layers that make it, "
        "so Semblance looks for them in the encoder's file, and no file in models/clip_vision has them for the encoder "
        f"connected. {SIGLIP.remedy}"
    )


def _read_head(path: Path, name: str, heads: int) -> PoolingHead:
    try:
        return PoolingHead.of(_tensors(path, PREFIX), heads)
    except (KeyError, RuntimeError) as missing:
        raise ValueError(
            f"The image encoder '{name}' has only a part of the layers that make {SIGLIP.name}'s embedding of a whole "
            f"picture. Download it again: {SIGLIP.file} is published at {SIGLIP.where}."
        ) from missing


@lru_cache(REMEMBERED)
def _has_head(path: Path, _size: int, _changed: int) -> bool:
    if path.suffix.lower() not in (".safetensors", ".sft"):
        return False
    try:
        with safe_open(str(path), framework="pt") as file:
            return PROBE in file.keys()  # noqa: SIM118
    except (SafetensorError, OSError):
        return False


def _is_of(path: Path, encoder: Any) -> bool:
    """Whether an encoder was loaded from this file, or from another copy of it."""
    own = encoder.model.vision_model.post_layernorm
    saved = _tensors(path, NORM)
    return all(
        f"{NORM}{name}" in saved and _alike(getattr(own, name).detach().cpu(), saved[f"{NORM}{name}"])
        for name in ("weight", "bias")
    )


def _alike(own: Tensor, saved: Tensor) -> bool:
    return own.shape == saved.shape and torch.equal(own.float(), saved.to(own.dtype).float())


def _tensors(path: Path, prefix: str) -> dict[str, Tensor]:
    with safe_open(str(path), framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys() if name.startswith(prefix)}  # noqa: SIM118
