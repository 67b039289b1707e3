"""A picture cut into squares that each act in their own part of the image, as ComfyUI_IPAdapter_plus does it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ...attention.engine.scope import ImageMask
from ..pictures import check_picture
from .applying import Listening, apply_pictures, check_adapter
from .prepared_pictures import resized
from .sharpening import sharpened
from .sources import PictureReader

TILE = 256
"""Pixels of a tile's side."""
NEARLY_SQUARE = (0.75, 1.33)
"""Pictures whose height by their width lies between these become four tiles of their middle square."""
LONGEST = 4
"""How many times its short side a picture can be long; the middle is kept of longer ones."""
Box = tuple[int, int, int, int]  # top, left, bottom, right


@dataclass(frozen=True, eq=False)
class Tiles:
    """Squares of pictures of one size, row by row, and where each acts."""

    pictures: tuple[Tensor, ...]  # by tile, (images, TILE, TILE, 3)
    masks: tuple[Tensor, ...]  # by tile, (masks, height, width) of the canvas


def apply_tiles(
    model: Any, reader: PictureReader, tiles: Tiles, listening: Listening, negative: Tensor | None = None
) -> Any:
    """A clone of MODEL that listens to each tile where it acts.

    Raises ValueError if adapter and model, or adapter and encoder, do not fit each other.
    """
    check_adapter(reader.adapter, model)
    # All at once: the negatives are encoded no oftener than for a whole picture.
    encoded = reader.both_sides(torch.cat(tiles.pictures), negative)
    images = len(tiles.pictures[0])
    for number, mask in enumerate(tiles.masks):
        pictures = encoded.pictures[number * images : (number + 1) * images]
        model = apply_pictures(model, reader.adapter, replace(encoded, pictures=pictures), listening, mask)
    return model


def cut_into_tiles(images: Tensor, sharpening: float, mask: Tensor | None = None) -> Tiles:
    """Pictures (images, height, width, 3) in [0, 1] as squares, sharpened by an amount in [0, 1].

    A `mask` (masks, any height, any width) is for the whole picture. Raises ValueError for pictures that cannot be
    used.
    """
    check_picture(images, "The image")
    height, width = images.shape[1:3]
    top, left, bottom, right = _kept(height, width)
    canvas = _canvas(bottom - top, right - left)
    pictures = sharpened(resized(images[:, top:bottom, left:right], *canvas, "LANCZOS"), sharpening)
    area = torch.ones(1, *canvas)
    if mask is not None:
        whole = _at_size(ImageMask(mask).values.float().cpu(), (height, width))
        area = _at_size(whole[:, top:bottom, left:right], canvas)
    boxes = list(_boxes(*canvas))
    return Tiles(
        tuple(pictures[:, top:bottom, left:right] for top, left, bottom, right in boxes),
        tuple(_within(area, box) for box in boxes),
    )


def _kept(height: int, width: int) -> Box:
    """The part of a picture that is cut into tiles: all of it, or its middle."""
    least, most = NEARLY_SQUARE
    if least < height / width < most:
        high = wide = min(height, width)
    else:
        high, wide = min(height, LONGEST * width), min(width, LONGEST * height)
    top, left = (height - high) // 2, (width - wide) // 2
    return top, left, top + high, left + wide


def _canvas(height: int, width: int) -> tuple[int, int]:
    """The size that a part is brought to before it is cut."""
    if height == width:
        return 2 * TILE, 2 * TILE
    long = int(TILE * max(height, width) / min(height, width))
    return (TILE, long) if width > height else (long, TILE)


def _boxes(height: int, width: int) -> Iterator[Box]:
    for top in _starts(height):
        for left in _starts(width):
            yield top, left, top + TILE, left + TILE


def _starts(side: int) -> list[int]:
    """Where tiles begin along a side, evenly spread."""
    count = -(-side // TILE)
    return [int(number * (side - TILE) / max(count - 1, 1)) for number in range(count)]


def _at_size(mask: Tensor, size: tuple[int, int]) -> Tensor:
    if mask.shape[1:] == size:
        return mask
    return functional.interpolate(mask.unsqueeze(1), size, mode="bicubic", antialias=True).squeeze(1)


def _within(area: Tensor, box: Box) -> Tensor:
    top, left, bottom, right = box
    inside = torch.zeros_like(area)
    inside[:, top:bottom, left:right] = area[:, top:bottom, left:right]
    return inside
