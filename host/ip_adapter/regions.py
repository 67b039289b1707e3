"""Regions: each a picture with its area and how it is listened to there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from node_helpers import conditioning_set_values
from torch import Tensor

from ...attention.engine.scope import ImageMask, ScheduleWindow
from ...attention.families.weight_types import WeightType
from ..blocked import not_made
from ..pictures import check_picture


@dataclass(frozen=True, eq=False)
class Region:
    """Pictures for one area of the image."""

    images: Tensor  # (images, height, width, 3) in [0, 1]
    weight: float
    kind: WeightType
    start: float
    end: float
    mask: Tensor | None  # (masks, height, width) in [0, 1]; None for everywhere

    def __post_init__(self) -> None:
        """Raises ValueError for pictures, masks and windows that cannot be used."""
        check_picture(self.images, "The image")
        ScheduleWindow(self.start, self.end, may_be_empty=True)
        if self.mask is not None:
            ImageMask(self.mask)


Regions = tuple[Region, ...]
"""The value of a REGIONS socket, in the order in which they are applied."""


def within_mask(prompts: Any, mask: Tensor | None, weight: float, name: str) -> Any:
    """A CONDITIONING for the area of a mask alone, at a weight there, or without a mask as it is.

    Without prompts the output of this `name` is not made.
    """
    if prompts is None:
        return not_made(f"Nothing is connected to '{name}' of Region, so it gives no '{name}'. Connect a prompt there.")
    if mask is None:
        return prompts
    # As the core node Conditioning (Set Mask) does it, whose class cannot be imported under its name from here.
    return conditioning_set_values(prompts, {"mask": mask, "set_area_to_bounds": False, "mask_strength": weight})
