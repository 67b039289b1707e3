"""The Frechet distance between two sets of features (FID, arXiv:1706.08500), and its value for endless sets.

FID-infinity is of Chong and Forsyth, arXiv:1911.07023, and here as ArtFID computes it
(https://github.com/matthias-wright/art-fid, `compute_fid_infinity`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

SMALLEST_SUBSET = 5000
"""Where the sizes of ArtFID's subsets begin; up to so many pictures each subset is the whole set."""


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """What the distance needs of a set of features; its memory does not grow with their number.

    It lies on the CPU, wherever the features were: it is saved, and merged with saved ones, and not every device has
    float64.
    """

    count: int
    mean: Tensor  # (width,) float64
    scatter: Tensor  # (width, width) float64: summed products of deviations from the mean

    @classmethod
    def of(cls, features: Tensor) -> FeatureStatistics:
        """The statistics of features (pictures, width) of at least one picture.

        Raises ValueError for another shape, and for values that are no numbers.
        """
        if features.dim() != 2 or 0 in features.shape:
            raise ValueError(
                f"Features have the shape {tuple(features.shape)}, expected (pictures, width) with at least one "
                "picture. Give the network's pooled features."
            )
        features = features.cpu().double()
        if not bool(features.isfinite().all()):
            raise ValueError(
                "Features hold values that are not numbers (NaN or infinity). The network's weights or a picture are "
                "broken; check both."
            )
        mean = features.mean(dim=0)
        centred = features - mean
        return cls(len(features), mean, centred.T @ centred)

    def merged(self, other: FeatureStatistics) -> FeatureStatistics:
        """The statistics of both sets together (Chan et al. 1979). Raises ValueError where the widths differ."""
        _check_widths(self, other)
        count = self.count + other.count
        step = other.mean - self.mean
        scatter = torch.addr(self.scatter, step, step, alpha=self.count * other.count / count).add_(other.scatter)
        return FeatureStatistics(count, self.mean + step * (other.count / count), scatter)

    @property
    def covariance(self) -> Tensor:
        """(width, width), divided by the count less one. Raises ValueError for one picture."""
        if self.count < 2:
            raise ValueError(
                "The Frechet distance compares how pictures differ among themselves, and one picture differs from "
                "none. Give at least two on each side; its numbers mean something from some hundreds on."
            )
        return self.scatter / (self.count - 1)

    def state(self) -> dict[str, Tensor]:
        """Tensors to save; `from_state` reads them."""
        return {"count": torch.tensor(self.count), "mean": self.mean, "scatter": self.scatter}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> FeatureStatistics:
        """What `state` gave out. Raises ValueError for other tensors."""
        expected = {"count", "mean", "scatter"}
        if not expected <= set(state) or state["scatter"].shape != 2 * state["mean"].shape:
            raise ValueError(
                f"These are no saved statistics: found {sorted(state)[:5]}, expected {sorted(expected)} of one width. "
                "Choose a file that the FID node saved."
            )
        return cls(int(state["count"]), state["mean"].cpu().double(), state["scatter"].cpu().double())

    def __repr__(self) -> str:
        return f"statistics of {self.count} pictures, {len(self.mean)} features"


def frechet_distance(first: FeatureStatistics, second: FeatureStatistics) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^1/2), at least 0; the smaller, the more alike.

    S1 S2 has the eigenvalues of the symmetric S1^1/2 S2 S1^1/2, so the root's trace is the sum of their roots: no
    complex part arises where there are fewer pictures than features, unlike with `scipy.linalg.sqrtm`.
    Raises ValueError where the widths differ or one side is a single picture.
    """
    _check_widths(first, second)
    eigen = torch.linalg.eigh(first.covariance)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    values, vectors = cast(tuple[Tensor, Tensor], eigen)
    root = vectors * _without_noise(values).sqrt()  # root @ root.T is the covariance
    product = root.T @ second.covariance @ root
    product_values = cast(Tensor, torch.linalg.eigvalsh(product))  # pyright: ignore[reportUnknownMemberType]
    trace_of_root = _without_noise(product_values).sqrt().sum()
    step = first.mean - second.mean
    distance = step @ step + first.covariance.trace() + second.covariance.trace() - 2 * trace_of_root
    return max(float(distance), 0.0)


def frechet_infinity(
    first: Tensor,
    second: Tensor,
    points: int = 15,
    generator: torch.Generator | None = None,
    orders: Iterable[Tensor] | None = None,
) -> float:
    """The distance of endlessly many pictures: a line through the distances of subsets over 1 / size, taken at 0.

    `first` and `second` are features (pictures, width), as many of one as of the other. The sizes run from 5,000 to
    their number in `points` steps; up to 5,000 pictures every subset is the whole set, and this is the plain
    distance. `orders`, one permutation of the pictures for each size, replaces the random ones of `generator`.
    The command lines of ArtFID and StyleID put their number of workers, 8, in the place of `points`.
    Raises ValueError for different numbers of pictures, or for fewer than two points.
    """
    if len(first) != len(second):
        raise ValueError(
            f"FID-infinity takes the same pictures of both sets, but there are {len(first)} and {len(second)}. Give "
            "as many of one as of the other, or use the plain FID."
        )
    first, second = first.cpu(), second.cpu()
    sizes = subset_sizes(len(first), points)
    if orders is None:
        orders = (torch.randperm(len(first), generator=generator) for _ in sizes)
    distances = [
        frechet_distance(FeatureStatistics.of(first[rows]), FeatureStatistics.of(second[rows]))
        for rows in (order[:size] for order, size in zip(orders, sizes, strict=True))
    ]
    return _at_zero([1 / size for size in sizes], distances)


def subset_sizes(pictures: int, points: int) -> list[int]:
    """From 5,000 to the number of pictures, rounded down; they exceed it where there are fewer than 5,000."""
    if points < 2:
        raise ValueError(f"A line needs at least 2 points, found {points}. Raise the number of points.")
    step = (pictures - SMALLEST_SUBSET) / (points - 1)
    return [int(SMALLEST_SUBSET + place * step) for place in range(points - 1)] + [pictures]


def _at_zero(places: list[float], values: list[float]) -> float:
    """Where the least-squares line through these points meets 0."""
    place, value = (torch.tensor(numbers, dtype=torch.float64) for numbers in (places, values))
    spread = place - place.mean()
    variation = float(spread @ spread)
    slope = float(spread @ (value - value.mean())) / variation if variation else 0.0
    return float(value.mean()) - slope * float(place.mean())


def _without_noise(eigenvalues: Tensor) -> Tensor:
    """Eigenvalues of a matrix that has none below 0; what is within rounding of 0 is 0, since its root is not small."""
    noise = torch.finfo(eigenvalues.dtype).eps * len(eigenvalues) * eigenvalues.abs().max()
    return torch.where(eigenvalues > noise, eigenvalues, 0)


def _check_widths(first: FeatureStatistics, second: FeatureStatistics) -> None:
    if first.mean.shape != second.mean.shape:
        raise ValueError(
            f"One set has {len(first.mean)} features a picture and the other {len(second.mean)}. Take both with the "
            "same network."
        )
