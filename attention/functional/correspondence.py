"""Patches of different pictures that show the same thing, by diffusion features (DIFT, arXiv:2306.03881)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .statistics import otsu_threshold

OUTSIDE = 2.0
"""The cosine distance given to patches outside the subject: the largest there is."""


def smooth(features: Tensor) -> Tensor:
    """Features (images, channels, height, width) under a Gaussian of 3 x 3 with deviation 1, zeros around them."""
    across = torch.exp(-torch.tensor([1.0, 0.0, 1.0], device=features.device) / 2)
    kernel = (across[:, None] * across) / across.sum() ** 2
    channels = features.shape[1]
    return functional.conv2d(features.float(), kernel.expand(channels, 1, 3, 3), padding=1, groups=channels)


def patches_of(features: Tensor, height: int, width: int) -> Tensor:
    """Features (images, channels, ...) on a grid, each patch of length 1: (images, height * width, channels)."""
    grid = functional.interpolate(features, size=(height, width), mode="bilinear", align_corners=False)
    return functional.normalize(grid.flatten(2), dim=1).transpose(1, 2)


def nearest_patches(target: Tensor, source: Tensor, subject: Tensor) -> tuple[Tensor, Tensor]:
    """For every patch of `target` the nearest of `source` inside its subject, and their cosine distance.

    Both are (patches, channels) of length 1 each, `subject` is bool (patches,) of the source -> places (patches,) and
    distances (patches,). Of a source without a subject every distance is OUTSIDE.
    """
    distances = (1 - source @ target.T).masked_fill(~subject[:, None], OUTSIDE)
    nearest = distances.min(dim=0)
    return nearest.indices, nearest.values


def matched(distances: Tensor) -> Tensor:
    """Which patches (patches,) lie nearer to their match than Otsu's threshold of all distances: bool (patches,)."""
    return distances < otsu_threshold(distances[None])
