"""Rotary positions (arXiv:2104.09864): how strongly each pair of channels tells a place, and tokens moved along."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def frequency_factors(
    axes: Sequence[int],
    high: float,
    low: float,
    falloff: float,
    halves: bool = False,
    places: Sequence[int] = (1, 2),
    device: torch.device | None = None,
) -> Tensor:
    """A factor for each channel of a head, (head_dim,) float32 on `device`, by the frequency of its rotation.

    s_d = high + (low - high) * d ** falloff, where d runs from 0 at the highest frequency of an axis to 1 at its lowest
    (Untwisting RoPE, arXiv:2602.05013). `axes` are the channels of a head for each axis of position. Those that are not
    among `places` do not tell where in a picture a token stands, but its frame or its place in the text; they have the
    factor of the lowest frequency throughout. `halves` says that the two channels of a rotation stand one in each half
    of the head, not side by side.

    Both channels of a rotation have one factor, so it makes no difference whether keys are rotated before or after.
    """
    factors: list[Tensor] = []
    for axis, channels in enumerate(axes):
        pairs = channels // 2
        place = torch.linspace(0, 1, pairs, device=device) if pairs > 1 else torch.ones(pairs, device=device)
        of_axis = high + (low - high) * place**falloff if axis in places else torch.full_like(place, low)
        factors.append(of_axis)
    of_pairs = torch.cat(factors)
    return of_pairs.repeat(2) if halves else of_pairs.repeat_interleave(2)


def moved_along(tokens: Tensor, by: float, channels: int, base: float) -> Tensor:
    """Rotated tokens (..., head_dim) as they would be `by` places further along the first axis of position.

    That axis has the first `channels` of a head, two neighbouring ones to a rotation, whose frequencies fall from 1
    towards 1 / base.
    """
    pairs = channels // 2
    angles = by * base ** (-torch.arange(pairs, dtype=torch.float32, device=tokens.device) / pairs)
    cos, sin = angles.cos(), angles.sin()
    rotated = tokens[..., :channels].float()
    first, second = rotated[..., 0::2], rotated[..., 1::2]
    turned = torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1)
    return torch.cat([turned.flatten(-2).to(tokens), tokens[..., channels:]], dim=-1)
