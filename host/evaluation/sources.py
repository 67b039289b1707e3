"""Where pictures come from, an IMAGE or a folder, and reading them one after another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import comfy.model_management
import comfy.utils
import numpy
import torch
from PIL import Image
from torch import Tensor

from ..pictures import check_picture
from .folders import UnreadablePicture, skipped_report


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
        check_picture(self.images, f"The input {self.name}")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"{self.name} {index}" for index in range(len(self)))

    def read(self, index: int) -> Tensor:
        return self.images[index : index + 1].float().clamp(0, 1)


@dataclass(eq=False)
class Reading:
    """Reads pictures one after another, shows how far it is, and notes those that were left out."""

    total: int
    """How many pictures, pairs or triples will be asked for."""
    short_side: int = 0
    """What the short side of each picture is scaled to, in pixels; 0 leaves them as they are."""
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
                found.append(scaled(source.read(place), self.short_side))
            except UnreadablePicture as why:
                self.skipped[f"{source.name}/{source.names[place]}"] = str(why)
        return tuple(found) if len(found) == len(sources) else None


def check_pairs(*sources: Pictures, one_for_all: bool = False, measure: str) -> None:
    """Raises ValueError unless the sources hold as many pictures each; or, `one_for_all`, some of them a single one."""
    counts = {len(source) for source in sources}
    if len(counts) > 1 and not (one_for_all and len(counts - {1}) == 1):
        told = ", ".join(f"{len(source)} in {source.name}" for source in sources)
        single = " or one against many" if one_for_all else ""
        raise ValueError(
            f"{measure} pairs the pictures in the order of their names, so it needs as many of each{single}; found "
            f"{told}. Give each picture its partner under the same name, a copy of it where it has several."
        )


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
    image = Image.fromarray((picture[0].clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())
    pixels = numpy.array(image.resize((width, height), Image.Resampling.BILINEAR))
    return torch.from_numpy(pixels).float().unsqueeze(0) / 255
