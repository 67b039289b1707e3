"""Draws the style picture that Load Demo Model gives: `python -m demo.style_picture`."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.library import use_library

from .training.loop import MODELS_FOLDER
from .training.sheets import save_picture
from .world import draw

ROW = 12
"""Of the references of `Pairs.draw`: a bright green cactus on the left, on the dark."""


def main() -> None:
    use_library()
    save_picture(style_picture(), MODELS_FOLDER / "style_picture.png")


def style_picture() -> Tensor:
    """(3, 128, 128) in 0..1."""
    from .study import Pairs

    return draw(Pairs.draw().references.take(torch.tensor([ROW]))).pictures[0]


if __name__ == "__main__":
    main()
