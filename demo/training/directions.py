"""The direction of a texture as numbers."""

import torch
from torch import Tensor

from ..world import TEXTURES, Style

_TURNS = {"stripes": 2, "waves": 2, "plain": 0, "motifs": 0}
"""By how much a turn of the texture counts: what looks alike after a half turn, twice; after a quarter, four times."""


def texture_direction(style: Style) -> Tensor:
    """The texture's angle as a point on a circle, in its own symmetry; 0, 0 where it has none: (pictures, 2)."""
    turn = torch.tensor([_TURNS.get(name, 4) for name in TEXTURES])[style.texture]
    return torch.stack([(turn * style.angle).cos(), (turn * style.angle).sin()], dim=1) * (turn > 0)[:, None]
