"""Rotary positions (arXiv:2104.09864) undone: a rotation is orthogonal, so its transpose turns back."""

from __future__ import annotations

import torch
from torch import Tensor


def rotated_back(rotated: Tensor, rotation: Tensor) -> Tensor:
    """Queries or keys (rows, heads, tokens, head_dim) as they were before their positions were put in.

    `rotation` (rows or 1, 1, tokens, head_dim / 2, 2, 2) has a matrix for each two neighbouring channels.
    """
    pairs = torch.unflatten(rotated.to(rotation.dtype), -1, (-1, 2))
    back = rotation[..., 0, :] * pairs[..., :1] + rotation[..., 1, :] * pairs[..., 1:]
    return back.flatten(-2).to(rotated.dtype)


def normalised_heads(projected: Tensor, heads: int, eps: float = 1e-5) -> Tensor:
    """Keys (..., tokens, heads * head_dim), each head divided by its root mean square (arXiv:1910.07467)."""
    apart = torch.unflatten(projected.float(), -1, (heads, -1))
    return (apart * (apart.square().mean(dim=-1, keepdim=True) + eps).rsqrt()).flatten(-2)
