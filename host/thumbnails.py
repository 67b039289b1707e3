"""Small JPEG pictures inside the files of styles and subjects."""

from __future__ import annotations

import base64
import io

import numpy
import torch
from PIL import Image
from torch import Tensor

THUMBNAIL = 192
"""Pixels of a thumbnail's long side."""


def thumbnail_of(pictures: Tensor) -> str:
    """The first four pictures (pictures, height, width, 3), side by side, as a JPEG data URL."""
    strip = torch.cat(list(pictures[:4]), dim=1)
    image = Image.fromarray((strip.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())
    image.thumbnail((THUMBNAIL * min(len(pictures), 4), THUMBNAIL))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def picture_of(thumbnail: str) -> Tensor:
    """A JPEG data URL as an IMAGE (1, height, width, 3), or black if it cannot be read."""
    try:
        file = io.BytesIO(base64.b64decode(thumbnail.partition(",")[2]))
        image = Image.open(file).convert("RGB")
    except (ValueError, OSError, Image.DecompressionBombError):
        image = Image.new("RGB", (THUMBNAIL, THUMBNAIL))
    return torch.from_numpy(numpy.array(image)).float().unsqueeze(0) / 255
