"""The style picture of the demo: one scene of the drawn world."""

from __future__ import annotations

from pathlib import Path

from .training.sheets import save_picture
from .world import draw, sample_scenes

SEED = 53
SIDE = 256  # pixels
CONTENT = "a star"
"""What the picture shows, in the words that are subtracted."""


def draw_style_picture(path: Path) -> Path:
    """Saves the picture, the same one every time, and returns where."""
    (picture,) = draw(sample_scenes(1, SEED), SIDE).pictures
    save_picture(picture, path)
    return path
