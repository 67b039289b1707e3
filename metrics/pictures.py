"""What every metric asks of the pictures it is given: (pictures, 3, height, width), floating point, in [0, 1]."""

from __future__ import annotations

import math

import torch
from torch import Tensor

FAR_OUTSIDE = 1.0
"""How far values may lie outside [0, 1], as sharpening and resizing leave them, before another range is meant."""


def checked(pictures: Tensor, name: str = "The pictures") -> Tensor:
    """The same pictures in float32. Raises ValueError, beginning with `name`, for what is not a batch of pictures."""
    if pictures.dim() != 4 or pictures.shape[1] != 3:
        raise ValueError(
            f"{name} have the shape {tuple(pictures.shape)}; a metric needs (pictures, 3, height, width). "
            "Give red, green and blue, without transparency."
        )
    if 0 in pictures.shape:
        raise ValueError(f"{name} are empty: their shape is {tuple(pictures.shape)}. Give at least one picture.")
    if not pictures.is_floating_point():
        raise ValueError(f"{name} hold whole numbers ({pictures.dtype}); a metric needs [0, 1]. Divide them by 255.")
    pictures = pictures.float()
    low, high = (float(value) for value in torch.aminmax(pictures))
    # aminmax passes NaN on, so two numbers tell of all.
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(
            f"{name} hold values that are not numbers (NaN or infinity), as a failed decoding gives. Make them again."
        )
    if low < -FAR_OUTSIDE or high > 1 + FAR_OUTSIDE:
        raise ValueError(f"{name} hold values from {low:g} to {high:g}; a metric needs [0, 1]. Scale them to it.")
    return pictures


def checked_pairs(first: Tensor, second: Tensor, first_name: str, second_name: str) -> tuple[Tensor, Tensor]:
    """Two batches whose pictures are compared row by row. Raises ValueError where they do not pair up."""
    first, second = checked(first, first_name), checked(second, second_name)
    if len(first) != len(second):
        raise ValueError(
            f"{first_name} are {len(first)} and {second_name.lower()} are {len(second)}, but they are compared in "
            "pairs. Give as many of one as of the other, in the same order."
        )
    if first.shape != second.shape:
        raise ValueError(
            f"{first_name} are {_size(first)} and {second_name.lower()} are {_size(second)} pixels, but they are "
            "compared place by place. Resize one to the other's size."
        )
    return first, second


def checked_size(pictures: Tensor, smallest: int, metric: str) -> None:
    """Raises ValueError where a side is shorter than the `smallest` that the metric's network takes."""
    if min(pictures.shape[2:]) < smallest:
        raise ValueError(
            f"The pictures are {_size(pictures)} pixels, but {metric} needs at least {smallest} on each side. "
            "Use larger pictures."
        )


def _size(pictures: Tensor) -> str:
    return f"{pictures.shape[3]} x {pictures.shape[2]}"
