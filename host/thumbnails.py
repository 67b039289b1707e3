"""Small JPEG pictures inside the files of styles and subjects."""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from .pictures import image_of, tensor_of

THUMBNAIL = 192
"""Pixels of a thumbnail's long side."""
MOST = 4
"""Pictures in a thumbnail."""
MOST_PIXELS = 2**22
"""The largest thumbnail that is shown: 48 MB as an IMAGE."""


def thumbnail_of(pictures: Tensor) -> str:
    """The first four pictures (pictures, height, width, 3), side by side, as a JPEG data URL."""
    shown = list(pictures[:MOST])
    return _jpeg(torch.cat(shown, dim=1), len(shown))


def joined_thumbnails(thumbnails: Sequence[str]) -> str:
    """Thumbnails side by side, as many as there is place for, as one; an empty string if there is none to show."""
    found = [picture for picture in map(picture_of, filter(None, thumbnails)) if picture is not None]
    if not found:
        return ""
    scaled = [_at_height(picture.movedim(-1, 1), THUMBNAIL).movedim(1, -1)[0] for picture in found]
    return _jpeg(torch.cat(scaled, dim=1)[:, : MOST * THUMBNAIL], MOST)


def picture_of(thumbnail: str) -> Tensor | None:
    """A JPEG data URL as an IMAGE (1, height, width, 3), or None, with a line in the log, if it is not to be shown.

    A file may come from a stranger: only JPEGs are opened, and only up to MOST_PIXELS, since a small file of another
    kind can unpack to gigabytes.
    """
    try:
        file = io.BytesIO(base64.b64decode(thumbnail.partition(",")[2]))
        image = Image.open(file, formats=["JPEG"])
        if image.width * image.height > MOST_PIXELS:
            raise ValueError(f"it has {image.width}x{image.height} pixels")
        return tensor_of(image)
    except (ValueError, OSError, Image.DecompressionBombError) as fault:
        logging.warning("Semblance: a file's thumbnail is not shown, because it is not a small JPEG picture: %s", fault)
        return None


def _at_height(picture: Tensor, height: int) -> Tensor:
    width = max(round(picture.shape[3] * height / picture.shape[2]), 1)
    return functional.interpolate(picture, (height, width), mode="bilinear", antialias=True)


def _jpeg(strip: Tensor, squares: int) -> str:
    """A strip (height, width, 3), as wide as so many squares at most, as a JPEG data URL."""
    image = image_of(strip)
    image.thumbnail((THUMBNAIL * squares, THUMBNAIL))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
