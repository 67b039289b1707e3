"""Patch correspondence between pictures by diffusion features (DIFT, arXiv:2306.03881)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .statistics import otsu_threshold

OUTSIDE = 2.0
"""The cosine distance of patches outside the subject: the largest possible."""

TILE = 1024
"""How many patches are compared with a subject at once: 16 MiB where it has 4096."""


def smooth(features: Tensor) -> Tensor:
    """Features (images, channels, height, width) blurred by a 3 x 3 Gaussian of deviation 1, padded with zeros."""
    across = torch.exp(-torch.tensor([1.0, 0.0, 1.0], device=features.device) / 2)
    kernel = (across[:, None] * across) / across.sum() ** 2
    channels = features.shape[1]
    return functional.conv2d(features.float(), kernel.expand(channels, 1, 3, 3), padding=1, groups=channels)


def patches_of(features: Tensor, height: int, width: int) -> Tensor:
    """Features (images, channels, rows, columns), resized and of unit length: (images, height * width, channels)."""
    grid = functional.interpolate(features, size=(height, width), mode="bilinear", align_corners=False)
    return functional.normalize(grid.flatten(2), dim=1).transpose(1, 2)


def nearest_patches(target: Tensor, source: Tensor, subject: Tensor) -> tuple[Tensor, Tensor]:
    """For every patch of `target`, the index of the nearest patch inside the source's subject, and its cosine distance.

    `target` and `source` are (patches, channels) of unit length; `subject` is bool (source patches,). Both results are
    (target patches,). If the source has no subject, every distance is OUTSIDE.
    """
    inside = subject.nonzero().squeeze(1)
    if not len(inside):
        outside = torch.full_like(target[:, 0], OUTSIDE)
        return torch.zeros_like(outside, dtype=torch.long), outside
    rows = source.index_select(0, inside)
    # In tiles, so that no matrix of all patches by all patches is held at once.
    indices: list[Tensor] = []
    distances: list[Tensor] = []
    for start in range(0, len(target), TILE):
        nearest = (1 - rows @ target[start : start + TILE].T).min(dim=0)
        indices.append(nearest.indices)
        distances.append(nearest.values)
    return inside.index_select(0, torch.cat(indices)), torch.cat(distances)


def near_enough(distances: Tensor) -> Tensor:
    """Whether each distance (patches,) is below Otsu's threshold of all of them: bool (patches,)."""
    return distances < otsu_threshold(distances[None])
