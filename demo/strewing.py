"""Grounds strewn with small motifs at irregular places: a texture that cannot be continued, only copied."""

import math

import torch
from torch import Tensor

from .shapes import SHAPES, signed_distance

MOTIFS = ("star", "heart", "leaf", "moon", "flower")
SIZE = 0.36  # radius of a motif, in distances from one to the next
JITTER = 0.24  # how far a motif may stand from the middle of its cell, likewise


def strewn(frequency: Tensor, phase: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """1 within the motifs and 0 between them: (pictures, height, width), like `x` and `y`, whose unit is half a side.

    `frequency` (pictures,) is in motifs per picture side; `phase` (pictures, 2) settles kind, places and turns.
    """
    seed = (phase * 1e4).long().sum(dim=1)[:, None, None]
    scale = (frequency / 2)[:, None, None]
    kinds = torch.tensor([SHAPES.index(name) for name in MOTIFS])
    kind = kinds[(phase[:, 0] * 1e3).long() % len(MOTIFS)]
    u, v = x * scale + 7.3, y * scale + 7.3
    nearest = torch.full_like(u, 9.0)
    for right in (-1, 0, 1):
        for up in (-1, 0, 1):
            column, row = u.floor() + right, v.floor() + up
            turn = math.tau * chance(column, row, seed)
            across = u - column - 0.5 - JITTER * (2 * chance(column, row, seed + 1) - 1)
            upwards = v - row - 0.5 - JITTER * (2 * chance(column, row, seed + 2) - 1)
            cos, sin = turn.cos() / SIZE, turn.sin() / SIZE
            distance = signed_distance(kind, cos * across + sin * upwards, cos * upwards - sin * across)
            nearest = torch.minimum(nearest, distance)
    return torch.sigmoid(-11.0 * nearest)


def chance(column: Tensor, row: Tensor, seed: Tensor) -> Tensor:
    """A number 0..1 for each cell, by integers alone, so that every machine strews alike."""
    mixed = (column.long() * 73_856_093) ^ (row.long() * 19_349_663) ^ (seed * 83_492_791)
    mixed = (mixed ^ (mixed >> 13)) * 1_274_126_177
    return ((mixed ^ (mixed >> 16)) & 0xFFFF).float() / 0xFFFF
