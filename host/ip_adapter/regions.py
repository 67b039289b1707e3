"""Regions: each a picture with its area and how it is listened to there."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...attention.families.weight_types import WeightType


@dataclass(frozen=True, eq=False)
class Region:
    """Pictures for one area of the image."""

    images: Tensor  # (images, height, width, 3) in [0, 1]
    weight: float
    kind: WeightType
    start: float
    end: float
    mask: Tensor | None  # (masks, height, width) in [0, 1]; None for everywhere


Regions = tuple[Region, ...]
"""The value of a REGIONS socket, in the order in which they are applied."""
