"""Pictures cut to a square for an image encoder, as PrepImageForClipVision of ComfyUI_IPAdapter_plus does it."""

from __future__ import annotations

from typing import Literal, get_args

import numpy
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ..pictures import check_picture
from .sharpening import sharpened

Filter = Literal["LANCZOS", "BICUBIC", "HAMMING", "BILINEAR", "BOX", "NEAREST"]
FILTERS: tuple[Filter, ...] = get_args(Filter)
Place = Literal["top", "bottom", "left", "right", "center", "pad"]
PLACES: tuple[Place, ...] = get_args(Place)
SIZE = 224
"""Pixels of a side: what CLIP's image encoders read."""


def prepared(images: Tensor, interpolation: Filter, place: Place, sharpening: float) -> Tensor:
    """Pictures (images, height, width, 3) in [0, 1] as squares of 224 pixels, sharpened by an amount in [0, 1].

    The square is as large as the short side and lies at `place`; at "pad" it is as large as the long side, with black
    around the picture. Raises ValueError for pictures that cannot be used.
    """
    check_picture(images, "The image")
    square = _padded(images) if place == "pad" else square_of(images, place)
    return sharpened(resized(square, SIZE, SIZE, interpolation), sharpening)


def resized(images: Tensor, height: int, width: int, interpolation: Filter) -> Tensor:
    """Pictures resized by PIL, in 8 bits that are cut off and not rounded."""
    levels = (images.clamp(0, 1) * 255).to(torch.uint8).cpu().numpy()
    filtered = (Image.fromarray(picture).resize((width, height), Image.Resampling[interpolation]) for picture in levels)
    return torch.stack([torch.from_numpy(numpy.array(picture)) for picture in filtered]).float() / 255


def square_of(images: Tensor, place: Place = "center") -> Tensor:
    """The largest square of pictures or masks (images, height, width, ...), in the middle or at an edge."""
    height, width = images.shape[1:3]
    side = min(height, width)
    top = {"top": 0, "bottom": height - side}.get(place, (height - side) // 2)
    left = {"left": 0, "right": width - side}.get(place, (width - side) // 2)
    return images[:, top : top + side, left : left + side]


def _padded(images: Tensor) -> Tensor:
    height, width = images.shape[1:3]
    across, down = (max(height - width, 0) // 2, max(width - height, 0) // 2)
    return functional.pad(images, (0, 0, across, across, down, down))
