"""How alike two pictures are in colour: RGB-uv histograms (HistoGAN, arXiv:2011.11731), as StyleID is evaluated.

https://github.com/jiwoogit/StyleID, `evaluation/eval_histogan.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .pictures import checked

BINS = 64
REACH = 3.0
"""Bins lie from -3 to 3, the logarithm of one colour over another."""
FALLOFF = 0.02
LONGEST_SIDE = 256
TINY = 1e-6


def histogram_loss(stylised: Tensor, style: Tensor) -> Tensor:
    """The Hellinger distance of the colours of each pair, float32 (pairs,) in [0, 1]; 0 is the same colours.

    Both are (pictures, 3, height, width) in [0, 1], of any sizes; one style may stand for all.
    Raises ValueError where there are more than one but not as many, or a value is no number.
    """
    found, wanted = color_histogram(stylised), color_histogram(style)
    if len(found) != len(wanted) and len(wanted) != 1:
        raise ValueError(
            f"There are {len(found)} stylised and {len(wanted)} style pictures. Give each its style, or one for all."
        )
    return (wanted.sqrt() - found.sqrt()).square().sum(dim=(1, 2, 3)).sqrt() / 2**0.5


def color_histogram(pictures: Tensor) -> Tensor:
    """How much of each colour a picture has: (pictures, 3, 64, 64), which sums to 1.

    Plane c holds each pixel at the logarithms of colour c over the two others, weighted by its brightness. Pictures
    with a side above 256 are first resized to 256 x 256, whatever their shape.
    """
    pictures = checked(pictures).clamp(0, 1)
    if max(pictures.shape[2:]) > LONGEST_SIDE:
        size = (LONGEST_SIDE, LONGEST_SIDE)
        pictures = functional.interpolate(pictures, size=size, mode="bilinear", align_corners=False)
    histograms = torch.stack([_histogram(picture.flatten(1)) for picture in pictures])
    return histograms / (histograms.sum(dim=(1, 2, 3), keepdim=True) + TINY)


def _histogram(pixels: Tensor) -> Tensor:
    """(3, pixels) -> (3, 64, 64), not normalised."""
    brightness = (pixels.square().sum(dim=0) + TINY).sqrt()
    logarithm = (pixels + TINY).log()
    planes: list[Tensor] = []
    for color, (one, other) in enumerate(((1, 2), (0, 2), (0, 1))):
        across = _closeness(logarithm[color] - logarithm[one])
        down = _closeness(logarithm[color] - logarithm[other])
        planes.append((brightness[:, None] * across).T @ down)
    return torch.stack(planes)


def _closeness(ratio: Tensor) -> Tensor:
    """How close each pixel's ratio (pixels,) lies to each bin: (pixels, 64), 1 on it and falling off quadratically."""
    # The authors take the distances in float64, which some devices lack; so near a bin they are as good in float32.
    places = torch.linspace(-REACH, REACH, BINS, dtype=torch.float64).to(ratio)
    return 1 / (1 + ((ratio[:, None] - places) / FALLOFF).square())
