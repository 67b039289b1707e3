"""The shapes of the drawn world as signed distances: negative inside, in units of the shape's own radius.

The formulas follow Inigo Quilez, "2D distance functions" (https://iquilezles.org/articles/distfunctions2d).
Every function takes coordinates (count, height, width) with y upwards and returns distances of the same size.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def _circle(x: Tensor, y: Tensor) -> Tensor:
    return torch.hypot(x, y) - 0.92


def _box(x: Tensor, y: Tensor, half_width: float, half_height: float) -> Tensor:
    dx, dy = x.abs() - half_width, y.abs() - half_height
    return torch.hypot(dx.clamp_min(0), dy.clamp_min(0)) + torch.maximum(dx, dy).clamp_max(0)


def _square(x: Tensor, y: Tensor) -> Tensor:
    return _box(x, y, 0.8, 0.8)


def _triangle(x: Tensor, y: Tensor) -> Tensor:
    root, side = math.sqrt(3.0), 0.95
    x, y = x.abs() - side, (y + 0.2) + side / root
    fold = x + root * y > 0
    x, y = torch.where(fold, (x - root * y) / 2, x), torch.where(fold, (-root * x - y) / 2, y)
    x = x - x.clamp(-2 * side, 0.0)
    return -torch.hypot(x, y) * y.sign()


def _star(x: Tensor, y: Tensor) -> Tensor:
    """A five-pointed star whose notches lie at 0.45 of its points."""
    sector = math.pi / 5
    angle = torch.remainder(torch.atan2(x, y) + sector, 2 * sector) - sector
    length = torch.hypot(x, y)
    px, py = length * angle.sin().abs(), length * angle.cos()
    ax, ay = 0.0, 1.05
    bx, by = 0.47 * math.sin(sector), 0.47 * math.cos(sector)
    ex, ey = bx - ax, by - ay
    wx, wy = px - ax, py - ay
    along = ((wx * ex + wy * ey) / (ex * ex + ey * ey)).clamp(0.0, 1.0)
    outside = (ex * wy - ey * wx).sign()
    return torch.hypot(wx - along * ex, wy - along * ey) * outside


def _heart(x: Tensor, y: Tensor) -> Tensor:
    scale = 1.62
    x, y = x.abs() / scale, (y + 0.95) / scale
    lobe = torch.hypot(x - 0.25, y - 0.75) - math.sqrt(2.0) / 4
    half = 0.5 * (x + y).clamp_min(0.0)
    body = torch.minimum(x**2 + (y - 1.0) ** 2, (x - half) ** 2 + (y - half) ** 2).sqrt() * (x - y).sign()
    return torch.where(x + y > 1.0, lobe, body) * scale


def _ring(x: Tensor, y: Tensor) -> Tensor:
    return (torch.hypot(x, y) - 0.7).abs() - 0.25


def _cross(x: Tensor, y: Tensor) -> Tensor:
    return torch.minimum(_box(x, y, 0.95, 0.3), _box(x, y, 0.3, 0.95))


def _moon(x: Tensor, y: Tensor) -> Tensor:
    x = x + 0.12
    return torch.maximum(torch.hypot(x, y) - 0.95, 0.8 - torch.hypot(x - 0.5, y))


_DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
    "ring": _ring,
    "cross": _cross,
    "moon": _moon,
}
SHAPES = tuple(_DISTANCES)


def signed_distance(shape: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Distances to each picture's own shape: `shape` (count,) indexes SHAPES; `x`, `y` are (count, height, width)."""
    distance = torch.empty_like(x)
    for number in shape.unique().tolist():
        rows = shape == number
        distance[rows] = _DISTANCES[SHAPES[number]](x[rows], y[rows])
    return distance
