"""Figures that everybody can name, as grids of signed distances: negative inside, in units of the figure's own radius.

The grids come from icons of Phosphor (MIT) and Font Awesome Free (CC BY 4.0): see NOTICE and `training/silhouettes.py`.
"""

from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

SILHOUETTES_FILE = Path(__file__).parent / "silhouettes.safetensors"
GRID_REACH = 1.25  # how far a grid reaches beyond the square from -1 to 1 that holds the figure
FIGURES = (
    "cat",
    "dog",
    "fish",
    "bird",
    "frog",
    "hippo",
    "kiwi",
    "horse",
    "rabbit",
    "ghost",
    "tree",
    "house",
    "rocket",
    "boat",
    "car",
    "cactus",
    "flower",
    "butterfly",
    "leaf",
    "snowman",
    "moon",
    "star",
    "heart",
    "dove",
)


def figure_distance(figure: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Distances to each picture's own figure: `figure` (count,) indexes FIGURES; `x`, `y` are (count, height, width).

    Beyond the grid a distance grows as it would from the grid's border.
    """
    grids = _grids().to(x)[figure][:, None]
    places = torch.stack([x, -y], dim=3) / GRID_REACH
    inner = functional.grid_sample(grids, places, mode="bilinear", padding_mode="border", align_corners=False)[:, 0]
    beyond = (places.abs() - 1).clamp_min(0.0).norm(dim=3) * GRID_REACH
    return inner + beyond


@cache
def _grids() -> Tensor:
    return load_file(SILHOUETTES_FILE)["distance"].float()
