"""LATENTs that nodes receive: checked, joined, and given the statistics of another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..attention.functional.masks import fit_mask
from ..attention.functional.statistics import adain


def picture_latents(latent: Mapping[str, Any]) -> Tensor:
    """The samples of a LATENT, (images, channels, height, width). Raises ValueError if they are no pictures.

    VAEs of models of video, such as Qwen-Image's, give a picture as one frame (images, channels, 1, height, width).
    """
    samples: Tensor = latent["samples"]
    if samples.ndim == 5 and samples.shape[2] == 1:
        samples = samples[:, :, 0]
    if samples.ndim != 4 or 0 in samples.shape:
        raise ValueError(
            f"The latent has shape {tuple(samples.shape)}; expected (images, channels, height, width), none of them 0, "
            "or one frame of them. Connect VAE Encode, with single pictures."
        )
    check_pictures(samples)
    return samples


def check_pictures(samples: Tensor) -> None:
    """Raises ValueError for latents that are no numbers, or no pictures."""
    if not torch.isfinite(samples).all():
        raise ValueError(
            "The latent holds values that are not numbers (NaN or infinite). The VAE may have overflowed in fp16; "
            "encode with --fp32-vae."
        )
    if not samples.any():
        raise ValueError(
            "The latent is empty (all zeros): there is no picture in it. Connect VAE Encode, not Empty Latent."
        )


def joined_latents(content: Mapping[str, Any], style: Mapping[str, Any] | None) -> Tensor:
    """The pictures of both LATENTs as one batch, content first. Raises ValueError if they differ in size."""
    ours = picture_latents(content)
    if style is None:
        return ours
    theirs = picture_latents(style)
    if ours.shape[1:] != theirs.shape[1:]:
        raise ValueError(
            f"The content latent is {tuple(ours.shape[1:])} and the style latent {tuple(theirs.shape[1:])} (channels, "
            "height, width). Scale the style picture to the content's size before VAE Encode."
        )
    return torch.cat([ours, theirs])


def adain_latent(
    content: Mapping[str, Any], style: Mapping[str, Any], strength: float, mask: Tensor | None = None
) -> dict[str, Any]:
    """The LATENT `content` with the statistics of `style` (AdaIN), where the mask (masks, height, width) is white.

    `strength` is from 0 to 1. Raises ValueError for latents without pictures, and for channels, numbers of latents or
    numbers of masks that do not fit.
    """
    ours, theirs = picture_latents(content), picture_latents(style)
    _check_pair(ours, theirs)
    moved = _masked(ours, adain(ours, theirs, strength), mask).to(ours.dtype)
    return {**content, "samples": moved[:, :, None] if content["samples"].ndim == 5 else moved}


def _check_pair(content: Tensor, style: Tensor) -> None:
    """Refuses latents of two kinds of models, and batches that do not pair."""
    if content.shape[1] != style.shape[1]:
        raise ValueError(
            f"The content latent has {content.shape[1]} channels and the style latent {style.shape[1]}: they come "
            "from VAEs of different models. Encode both with one VAE."
        )
    if 1 not in (len(content), len(style)) and len(content) != len(style):
        raise ValueError(
            f"There are {len(content)} content latents and {len(style)} style latents. Give one of either, or as many "
            "of both."
        )


def _masked(content: Tensor, moved: Tensor, mask: Tensor | None) -> Tensor:
    """`moved` where the mask is white, the content elsewhere."""
    if mask is None:
        return moved
    if len(mask) not in (1, len(moved)):
        raise ValueError(f"There are {len(mask)} masks for {len(moved)} latents. Connect one, or one for each.")
    area = fit_mask(mask, *moved.shape[-2:], feather=True)[:, None].to(moved)
    return torch.lerp(content.to(moved).expand_as(moved), moved, area)
