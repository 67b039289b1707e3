"""Statistics of latents and features, in float32."""

from __future__ import annotations

import torch
from torch import Tensor


def adain(content: Tensor, style: Tensor, strength: float = 1.0) -> Tensor:
    """Adaptive instance normalisation (arXiv:1703.06868): `content` with the mean and deviation of `style` per channel.

    Both are (images or 1, channels, height, width) and may differ in size; the result is float32. `strength` 0 returns
    the content, 1 the whole change. Deviations are unbiased and have no epsilon, as in StyleID; a constant channel is
    only moved to the style's mean.
    """
    content, style = content.float(), style.float()
    own_mean, own_deviation = _mean_and_deviation(content)
    mean, deviation = _mean_and_deviation(style)
    scale = torch.where(own_deviation > 0, deviation / own_deviation.clamp_min(1e-12), torch.ones_like(own_deviation))
    moved = (content - own_mean) * scale + mean
    return moved if strength == 1.0 else torch.lerp(content.expand_as(moved), moved, strength)


def _mean_and_deviation(latent: Tensor) -> tuple[Tensor, Tensor]:
    return latent.mean(dim=(2, 3), keepdim=True), latent.std(dim=(2, 3), keepdim=True)


def otsu_threshold(values: Tensor, bins: int = 256) -> Tensor:
    """Otsu's threshold (1979) of each row, (rows, values) -> (rows,): the centre of a bin, as in scikit-image.

    If all values of a row are equal, the threshold is that value.
    """
    values = values.float()
    low, high = values.amin(dim=1, keepdim=True), values.amax(dim=1, keepdim=True)
    step = (high - low) / bins
    edges = torch.cat([low + step * torch.arange(bins, device=values.device), high], dim=1)
    counts = _histogram(values, edges)
    centers = (edges[:, :-1] + edges[:, 1:]) / 2
    variance = _between_classes(counts, centers)
    best = centers.gather(1, variance.argmax(dim=1, keepdim=True))
    return torch.where(high > low, best, low).squeeze(1)


def _histogram(values: Tensor, edges: Tensor) -> Tensor:
    """Counts (rows, bins) of the values (rows, values) between the edges (rows, bins + 1); the last bin is closed."""
    indices = torch.searchsorted(edges, values.contiguous(), right=True) - 1
    bins = edges.shape[1] - 1
    counts = values.new_zeros(len(values), bins)
    return counts.scatter_add(1, indices.clamp(0, bins - 1), torch.ones_like(values))


def _between_classes(counts: Tensor, centers: Tensor) -> Tensor:
    """The variance between the two classes of each split, (rows, bins - 1)."""
    weighted = counts * centers
    below, sum_below = counts.cumsum(dim=1), weighted.cumsum(dim=1)
    above, sum_above = (part.flip(1).cumsum(dim=1).flip(1) for part in (counts, weighted))
    means = sum_below[:, :-1] / below[:, :-1] - sum_above[:, 1:] / above[:, 1:]
    return below[:, :-1] * above[:, 1:] * means**2
