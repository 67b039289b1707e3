"""The shapes of the drawn world, which everybody can name, as grids of signed distances.

A distance is negative inside, and in units of the shape's own radius.

The grids come from icons of Phosphor (MIT) and Font Awesome Free (CC BY 4.0): see NOTICE and `training/silhouettes.py`.
"""

from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

SILHOUETTES_FILE = Path(__file__).parent / "silhouettes.safetensors"
GRID_REACH = 1.25  # how far a grid reaches beyond the square from -1 to 1 that holds the shape
SHAPES = (
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


def signed_distance(shape: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Distances to each picture's own shape: `shape` (count,) indexes SHAPES; `x`, `y` are (count, height, width).

    Beyond the grid a distance grows as it would from the grid's border.
    """
    grids = _grids().to(x)[shape][:, None]
    places = torch.stack([x, -y], dim=3) / GRID_REACH
    inner = functional.grid_sample(grids, places, mode="bilinear", padding_mode="border", align_corners=False)[:, 0]
    beyond = (places.abs() - 1).clamp_min(0.0).norm(dim=3) * GRID_REACH
    return inner + beyond


@cache
def _grids() -> Tensor:
    return load_file(SILHOUETTES_FILE)["distance"].float()
