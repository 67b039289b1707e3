"""LATENTs given as content and style: made fit for each other, and blended by a mask."""

from __future__ import annotations

import torch
from torch import Tensor

from ..attention.functional.masks import fit_mask


def match_channels(content: Tensor, style: Tensor) -> None:
    """Refuses latents of two kinds of models, and batches that do not pair, with a ValueError."""
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


def masked_latent(content: Tensor, moved: Tensor, mask: Tensor | None) -> Tensor:
    """`moved` where the mask (masks, height, width) is white, the content elsewhere."""
    if mask is None:
        return moved
    if len(mask) not in (1, len(moved)):
        raise ValueError(f"There are {len(mask)} masks for {len(moved)} latents. Connect one, or one for each.")
    area = fit_mask(mask, *moved.shape[-2:], feather=True)[:, None].to(moved)
    return torch.lerp(content.to(moved).expand_as(moved), moved, area)
