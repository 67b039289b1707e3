"""Mean and deviation of tokens, channel by channel, in float32."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

EPSILON = 1e-5  # added to variances, as in StyleAligned's code


class Moments(NamedTuple):
    """Mean and variance (unbiased; of a single token 0) over tokens: (..., 1, channels)."""

    mean: Tensor
    variance: Tensor


def moments(tokens: Tensor) -> Moments:
    """Of tokens (..., tokens, channels); the variance of a single token is 0."""
    correction = min(1, tokens.shape[-2] - 1)
    variance, mean = torch.var_mean(tokens.float(), dim=-2, keepdim=True, correction=correction)
    return Moments(mean, variance)


def pooled(parts: list[Moments]) -> Moments:
    """Of several sets of as many tokens each: the mean of the means, and of the variances about it."""
    if len(parts) == 1:
        return parts[0]
    means, variances = (torch.stack(values) for values in zip(*parts, strict=True))
    mean = means.mean(dim=0)
    return Moments(mean, variances.mean(dim=0) + (means - mean).square().mean(dim=0))


def with_moments(tokens: Tensor, given: Moments, strength: float = 1.0) -> Tensor:
    """Tokens (..., tokens, channels) moved to the given mean and deviation (AdaIN, arXiv:1703.06868), in their dtype.

    `strength` 0 leaves them, 1 is the whole change. `given` broadcasts to them.
    """
    own = moments(tokens)
    scale = ((given.variance + EPSILON) / (own.variance + EPSILON)).sqrt()
    moved = (tokens.float() - own.mean) * scale + given.mean
    return (moved if strength == 1.0 else torch.lerp(tokens.float(), moved, strength)).to(tokens)
