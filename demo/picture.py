"""A style picture, drawn: rings of a few colours with a rough edge."""

from __future__ import annotations

from pathlib import Path

import numpy
from PIL import Image

PALETTE = numpy.array([[18, 52, 86], [236, 112, 50], [250, 220, 160], [32, 140, 130]])
SIDE = 256  # pixels


def draw_style_picture(path: Path) -> Path:
    """Saves the picture, the same one every time, and returns where."""
    down, across = numpy.mgrid[0:SIDE, 0:SIDE] / SIDE
    rings = numpy.hypot(across - 0.35, down - 0.6) * 9 + 0.4 * numpy.sin(across * 40) * numpy.sin(down * 33)
    Image.fromarray(PALETTE[rings.astype(int) % len(PALETTE)].astype(numpy.uint8)).save(path)
    return path
