"""Feature injection: which patches of two images show the same part of the subject, and the copying along them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...functional.correspondence import patches_of, smooth
from ...subjects.maps import Grid
from .settings import Injection

Match = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(image, patches, subjects) -> index of each patch's match, and whether it is near enough."""


def unit_patches(features: Tensor, grid: Grid) -> Tensor:
    """Features (images, channels, height, width), smoothed, as (images, patches of `grid`, channels) of length 1."""
    return patches_of(smooth(features), *grid)


def match_subjects(patches: Tensor, subjects: Tensor, match: Match) -> tuple[Tensor, Tensor]:
    """For every patch of every image the index of its match, and whether it is copied to: both (images, patches).

    `subjects`, bool (images, patches), says which patches show a subject; only those are copied to.
    """
    found = [match(image, patches, subjects) for image in range(len(patches))]
    indices, near = (torch.stack(part) for part in zip(*found, strict=True))
    return indices, near & subjects


def inject(
    output: Tensor,
    chunks: Sequence[slice],
    matches: tuple[Tensor, ...],
    sources: Callable[[Tensor], Tensor],
    injection: Injection,
) -> Tensor:
    """An attention's `output` (rows, tokens, channels) with the features of matching patches mixed into some chunks.

    `sources` gives the features to copy, (patches, channels), from a chunk's images (images, tokens, channels).
    """
    indices, wanted = matches
    output = output.clone()
    for rows in chunks:
        after = output[rows]
        # In turn, images copy from those before as they have become: `after` is then both read and written.
        features = sources(after if injection.in_turn else after.clone())
        for image, (match, here) in enumerate(zip(indices, wanted, strict=True)):
            copied = features.index_select(0, match)
            mixed = torch.lerp(after[image], copied, injection.strength)
            after[image] = torch.where(here[:, None], mixed, after[image])
    return output
