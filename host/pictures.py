"""IMAGEs checked, and fitted to the square input of an image encoder.

Fitting follows transformers' CLIPImageProcessor ("crop") and SiglipImageProcessor ("stretch"), bicubic in 8 bits, so
that embeddings equal the authors'.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy
import torch
from PIL import Image
from torch import Tensor

Fit = Literal["crop", "pad", "tile", "stretch"]
FITS: tuple[Fit, ...] = get_args(Fit)
SMALLEST = 16
"""The smallest side of a picture in pixels; smaller ones show no style."""


def check_picture(images: Tensor, name: str, too_small: str = "too small to show a style") -> None:
    """Raises ValueError unless `images` are usable pictures (images, height, width, 3).

    `name` begins the message; `too_small` says what a picture below SMALLEST does not do.
    """
    shape = tuple(images.shape)
    if len(shape) != 4 or 0 in shape:
        raise ValueError(f"{name} holds no picture (its shape is {shape}). Connect an image, e.g. from Load Image.")
    if shape[-1] != 3:
        raise ValueError(
            f"{name} has {shape[-1]} channels; expected 3 (red, green, blue). Load it with Load Image, which takes the "
            "transparency off, or convert it to RGB."
        )
    if min(shape[1:3]) < SMALLEST:
        raise ValueError(
            f"{name} is {shape[2]}x{shape[1]} pixels, {too_small}; expected at least {SMALLEST}x{SMALLEST}. "
            "Choose a larger picture."
        )
    if not torch.isfinite(images).all():
        raise ValueError(f"{name} holds pixels that are not numbers (NaN or infinite). Check the node that made it.")


def image_of(picture: Tensor) -> Image.Image:
    """One picture (height, width, 3 or 4) in [0, 1] as Pillow's, rounded to 8 bits."""
    return Image.fromarray((picture.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())


def tensor_of(image: Image.Image) -> Tensor:
    """Pillow's picture as an IMAGE (1, height, width, 3)."""
    return torch.from_numpy(numpy.array(image.convert("RGB"))).float().unsqueeze(0) / 255


def fit_picture(picture: Tensor, size: int, fit: Fit, background: Sequence[float]) -> Tensor:
    """One picture (height, width, 3) as squares for an encoder, (crops, size, size, 3) in [0, 1].

    - crop: the middle square; the borders of a non-square picture are lost.
    - pad: the whole picture on `background` (red, green, blue), the mean colour of the encoder.
    - tile: overlapping squares that cover the whole picture.
    - stretch: the whole picture, squashed to a square.
    """
    image = image_of(picture)
    if fit == "pad":
        squares = [_padded(image, background).resize((size, size), Image.Resampling.BICUBIC)]
    elif fit == "stretch":
        squares = [image.resize((size, size), Image.Resampling.BICUBIC)]
    else:
        squares = _squares(_short_side_to(image, size), size, fit == "tile")
    return torch.cat([tensor_of(square) for square in squares])


def _short_side_to(image: Image.Image, size: int) -> Image.Image:
    short = min(image.size)
    width, height = (size if side == short else int(size * side / short) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _squares(image: Image.Image, size: int, all_of_it: bool) -> list[Image.Image]:
    """The middle square of an image whose short side is `size`, or evenly spaced squares along its long side."""
    width, height = image.size
    long = max(width, height)
    count = -(-long // size) if all_of_it else 1
    starts = (
        [round(index * (long - size) / (count - 1)) for index in range(count)] if count > 1 else [(long - size) // 2]
    )
    wide = width >= height
    return [image.crop((s, 0, s + size, size) if wide else (0, s, size, s + size)) for s in starts]


def _padded(image: Image.Image, background: Sequence[float]) -> Image.Image:
    side = max(image.size)
    canvas = Image.new("RGB", (side, side), tuple(round(255 * level) for level in background))  # pyright: ignore[reportArgumentType]
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return canvas
