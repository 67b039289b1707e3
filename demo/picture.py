"""The style picture of the demo: one scene of the drawn world."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from .world import draw, sample_scenes

SEED = 53
SIDE = 256  # pixels
CONTENT = "a star"
"""What the picture shows, in the words that are subtracted."""


def draw_style_picture(path: Path) -> Path:
    """Saves the picture, the same one every time, and returns where."""
    (picture,) = draw(sample_scenes(1, SEED), SIDE).pictures
    Image.fromarray((picture.movedim(0, -1) * 255).round().byte().numpy()).save(path)
    return path
