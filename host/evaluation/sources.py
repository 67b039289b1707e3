"""Where pictures come from, an IMAGE or a folder, and reading them one after another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import comfy.model_management
import comfy.utils
import torch
from PIL import Image
from torch import Tensor

from ...metrics.pictures import FAR_OUTSIDE
from ..pictures import check_picture, image_of, tensor_of
from .folders import UnreadablePicture, skipped_report

OVERSHOOT = 0.01
"""How far values may lie outside [0, 1] unmentioned; a VAE's are cut off, resizing leaves a little."""


class Pictures(Protocol):
    """Pictures in an order, each read when it is asked for."""

    @property
    def name(self) -> str: ...

    @property
    def names(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> Tensor:
        """One picture (1, height, width, 3) in [0, 1]. Raises UnreadablePicture for one that is to be left out."""
        ...


@dataclass(frozen=True, eq=False)
class PictureBatch:
    """The pictures of an IMAGE."""

    name: str
    """What the input is called."""
    images: Tensor  # (images, height, width, 3)

    def __post_init__(self) -> None:
        check_picture(self.images, f"The input {self.name}", "too small to be measured")
        low, high = self._range
        if low < -FAR_OUTSIDE or high > 1 + FAR_OUTSIDE:
            raise ValueError(
                f"The input {self.name} holds values from {low:.4g} to {high:.4g}; pictures hold 0 to 1. Check the "
                "node that made it, or scale its values."
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"{self.name} {index}" for index in range(len(self)))

    @property
    def cut(self) -> str:
        """A sentence where values outside [0, 1] are cut off, or nothing."""
        low, high = self._range
        if low >= -OVERSHOOT and high <= 1 + OVERSHOOT:
            return ""
        return (
            f"{self.name} holds values from {low:.4g} to {high:.4g}: it was measured cut off at 0 and 1, as ComfyUI "
            "saves pictures."
        )

    @cached_property
    def _range(self) -> tuple[float, float]:
        low, high = torch.aminmax(self.images)
        return float(low), float(high)

    def read(self, index: int) -> Tensor:
        return self.images[index : index + 1].float().clamp(0, 1)


@dataclass(eq=False)
class Reading:
    """Reads pictures one after another, shows how far it is, and notes those that were left out."""

    total: int
    """How many pictures, pairs or triples will be asked for."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Why a picture was left out, by its name."""

    def __post_init__(self) -> None:
        self._bar = comfy.utils.ProgressBar(self.total)

    def through(self, *sources: Pictures) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
        """The number of each row and its pictures, one of each source; a source of one picture lends it to every row.

        A row is left out when one of its pictures cannot be read. Raises ValueError if every row is.
        """
        rows = max(map(len, sources))
        left = 0
        for row in range(rows):
            comfy.model_management.throw_exception_if_processing_interrupted()
            pictures = self._row(sources, row)
            if pictures is None:
                left += 1
            else:
                yield row, pictures
            self._bar.update(1)
        if left == rows:
            name, why = next(iter(self.skipped.items()))
            raise ValueError(
                f"No picture of {' or '.join(source.name for source in sources)} can be measured: {name} is "
                f"{why}. Put pictures there that ComfyUI's Load Image shows."
            )

    def skipped_report(self) -> str:
        """A sentence about the pictures that were left out and why, or nothing."""
        return skipped_report(self.skipped)

    def _row(self, sources: Sequence[Pictures], row: int) -> tuple[Tensor, ...] | None:
        found: list[Tensor] = []
        for source in sources:
            place = row if len(source) > 1 else 0
            try:
                found.append(source.read(place))
            except UnreadablePicture as why:
                self.skipped[f"{source.name}/{source.names[place]}"] = str(why)
        return tuple(found) if len(found) == len(sources) else None


def cut_report(*sources: Pictures) -> str:
    """A sentence for each batch whose values were cut off, or nothing."""
    return " ".join(source.cut for source in sources if isinstance(source, PictureBatch) and source.cut)


def as_they_are(short_side: int) -> str:
    """How pictures were scaled, for a protocol."""
    return f"scaled to {short_side} pixels on the short side (bilinear)" if short_side else "as they are"


def scaled(picture: Tensor, short_side: int) -> Tensor:
    """A picture (1, height, width, 3) with another short side: bilinear in 8 bits, as the authors read their files."""
    height, width = picture.shape[1:3]
    short = min(height, width)
    if short_side in (0, short):
        return picture
    width, height = (short_side if side == short else int(short_side * side / short) for side in (width, height))
    return tensor_of(image_of(picture[0]).resize((width, height), Image.Resampling.BILINEAR))
