"""Statistics of latents and features, in float32."""

from __future__ import annotations

import torch
from torch import Tensor


def adain(content: Tensor, style: Tensor, strength: float = 1.0) -> Tensor:
    """Adaptive instance normalisation (arXiv:1703.06868) of latents: the style's mean and deviation a channel.

    Both are (images or 1, channels, height, width) and may differ in size. Deviations are unbiased, without an
    epsilon, as StyleID computes them; a constant channel keeps its values about the style's mean.
    """
    content, style = content.float(), style.float()
    own_mean, own_deviation = _mean_and_deviation(content)
    mean, deviation = _mean_and_deviation(style)
    scale = torch.where(own_deviation > 0, deviation / own_deviation.clamp_min(1e-12), torch.ones_like(own_deviation))
    moved = (content - own_mean) * scale + mean
    return moved if strength == 1.0 else torch.lerp(content.expand_as(moved), moved, strength)


def _mean_and_deviation(latent: Tensor) -> tuple[Tensor, Tensor]:
    return latent.mean(dim=(2, 3), keepdim=True), latent.std(dim=(2, 3), keepdim=True)
