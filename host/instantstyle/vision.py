"""CLIP image encoders: the check that one fits an adapter, and encoding with it."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from ...attention.adapters.encoders import ENCODER_OF_EMBEDDING, ENCODER_OF_PATCHES, VIT_H, ImageEncoder
from ...attention.adapters.flux_checkpoint import Layout
from ..binding.carried import KEY
from .siglip import SIGLIP_MODEL, check_siglip, pooled

BATCH = 8
"""Number of crops encoded at once."""
REMEMBERED = 64
"""Number of encoded crops that are kept with an encoder, the latest ones."""


def check_encoder(encoder: Any, layout: Layout) -> None:
    """Raises ValueError, naming the right encoder and its source, unless `encoder` (a CLIP_VISION) fits the adapter."""
    kind = getattr(encoder, "model_type", "clip_vision_model")
    width = _width(encoder, kind, layout.is_global)
    known = ENCODER_OF_EMBEDDING if layout.is_global else ENCODER_OF_PATCHES
    found = known.get(width)
    needed = known.get(layout.clip_width)
    if width == layout.clip_width:
        if layout.is_global:
            _check_size(encoder, needed)
        if kind == SIGLIP_MODEL:
            check_siglip(encoder)
        elif layout.is_global:
            _check_projection(encoder)
        return
    given = f"{found.name} ({width}-wide)" if found else f"{width}-wide" if width else f"a {kind}"
    advice = needed.remedy if needed else "Load the image encoder that was published with the adapter."
    raise ValueError(f"This adapter needs {layout.encoder}, but the image encoder connected is {given}. {advice}")


def _check_size(encoder: Any, needed: ImageEncoder | None) -> None:
    """Refuses an encoder of the right width for pictures of another size, which sees pictures otherwise."""
    if needed is not None and needed.image_size not in (0, encoder.image_size):
        raise ValueError(
            f"The image encoder connected is {needed.name} for pictures of {encoder.image_size} pixels, but the "
            f"adapter was trained with the one for {needed.image_size}. {needed.remedy}"
        )


def _width(encoder: Any, kind: str, is_global: bool) -> int:
    """The channels of what an adapter reads of an encoder, or 0 for an encoder that no adapter reads."""
    if kind == SIGLIP_MODEL:
        return encoder.config["hidden_size"] if is_global else 0
    return encoder.config["projection_dim" if is_global else "hidden_size"] if kind == "clip_vision_model" else 0


def embedding_width(encoder: Any) -> int:
    """The channels of the projected embeddings of `encoder` (a CLIP_VISION).

    Raises ValueError if it is no CLIP or has no projection, and so shares no space with a text encoder.
    """
    kind = getattr(encoder, "model_type", "clip_vision_model")
    if kind != "clip_vision_model" or "projection_dim" not in encoder.config:
        raise ValueError(
            f"The image encoder connected is a {kind} without a text half, so its pictures cannot be compared with "
            f"words. {VIT_H.remedy}"
        )
    _check_projection(encoder)
    return encoder.config["projection_dim"]


def encode_crops(encoder: Any, crops: Tensor, is_global: bool) -> Tensor:
    """The encoding of `crops` (crops, size, size, 3) in [0, 1], float32 on the CPU.

    If `is_global`, these are projected embeddings (crops, channels), not normalised; else the states of the second-last
    layer (crops, patches, channels). Crops in the encoder's memory are not encoded again.
    """
    names = [_content((crop * 255).round().to(torch.uint8), is_global) for crop in crops]
    return _encoded_once(
        encoder, names, lambda new: encode_pixels(encoder, _normalised(encoder, crops[new]), is_global)
    )


def encode_pixels_once(encoder: Any, pixels: Tensor, is_global: bool) -> Tensor:
    """Like `encode_crops`, from normalised pixels (crops, 3, size, size)."""
    names = [_content(picture, is_global) for picture in pixels]
    return _encoded_once(encoder, names, lambda new: encode_pixels(encoder, pixels[new], is_global))


def _encoded_once(encoder: Any, names: Sequence[str], encode: Callable[[list[int]], Tensor]) -> Tensor:
    """The encodings of pictures by the names of their contents; `encode` makes those that are not remembered."""
    memory: OrderedDict[str, Tensor] = _memory_of(encoder)
    unseen = {name: row for row, name in enumerate(names) if name not in memory}
    if unseen:
        encoded = encode(list(unseen.values()))
        # Copies: a view would keep the whole batch in memory.
        memory.update((name, row.clone()) for name, row in zip(unseen, encoded, strict=True))
    found = torch.stack([memory[name] for name in names])
    for name in names:
        memory.move_to_end(name)
    while len(memory) > REMEMBERED:
        memory.popitem(last=False)
    return found


def encode_nothing(encoder: Any, is_global: bool) -> Tensor:
    """The unconditional side: a zero embedding (1, channels), or states (1, patches, channels) of the mean colour."""
    if is_global:
        return torch.zeros(1, encoder.config.get("projection_dim", encoder.config["hidden_size"]))
    # The authors encode zeros after normalisation. Other packs encode black, which differs.
    return encode_pixels(encoder, torch.zeros(1, 3, encoder.image_size, encoder.image_size), is_global)


def encode_pixels(encoder: Any, pixels: Tensor, is_global: bool) -> Tensor:
    """Like `encode_crops`, from normalised pixels (crops, 3, size, size) and without memory."""
    comfy.model_management.load_model_gpu(encoder.patcher)
    parts: list[Tensor] = []
    for batch in pixels.float().split(BATCH):
        comfy.model_management.throw_exception_if_processing_interrupted()
        seen = encoder.model(pixel_values=batch.to(encoder.load_device), intermediate_output=-2)
        parts.append((seen[2] if is_global else seen[1]).float().cpu())
    encoded = torch.cat(parts)
    return pooled(encoder, encoded) if is_global and encoded.ndim == 3 else encoded


def _check_projection(encoder: Any) -> None:
    """Refuses a file without a projection: ComfyUI leaves that matrix uninitialised (zeros, huge numbers or NaN)."""
    deviation = float(encoder.model.visual_projection.weight.detach().float().std())
    if not 1e-4 < deviation < 10.0:
        raise ValueError(
            "The image encoder's file has no projection (visual_projection), which embeddings of whole pictures need. "
            "Download the image encoder again from where it is published."
        )


def _normalised(encoder: Any, crops: Tensor) -> Tensor:
    mean, deviation = (torch.tensor(values) for values in (encoder.image_mean, encoder.image_std))
    return ((crops - mean) / deviation).movedim(-1, 1)


def _memory_of(encoder: Any) -> OrderedDict[str, Tensor]:
    """Encoded crops by content, attached to the encoder so that they are freed with it."""
    name = f"{KEY}_encoded"
    if encoder.patcher.get_attachment(name) is None:
        encoder.patcher.set_attachments(name, OrderedDict())
    return encoder.patcher.get_attachment(name)


def _content(picture: Tensor, is_global: bool) -> str:
    pixels = picture.contiguous().cpu()
    content = hashlib.sha256(pixels.numpy().tobytes()).hexdigest()
    return f"{content} {tuple(pixels.shape)} {pixels.dtype} {is_global}"
