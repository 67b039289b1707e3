"""Features of a set of pictures, gathered one picture at a time; memory does not grow with the set."""

from __future__ import annotations

import torch
from torch import Tensor

from ...metrics.frechet import FeatureStatistics

TOGETHER = 64
"""How many pictures join the statistics at once; joining costs as much for one as for many."""


class Gathered:
    """Statistics of a set of features, and the features themselves where they are to be kept."""

    def __init__(self, keep: bool = False) -> None:
        self.count = 0
        self._statistics: FeatureStatistics | None = None
        self._waiting: list[Tensor] = []
        self._kept: list[Tensor] | None = [] if keep else None

    def add(self, features: Tensor) -> None:
        """One more picture, (1, width)."""
        self.count += 1
        self._waiting.append(features)
        if self._kept is not None:
            self._kept.append(features)
        if len(self._waiting) == TOGETHER:
            self._join()

    @property
    def statistics(self) -> FeatureStatistics:
        """Of all pictures so far, at least one."""
        if self._waiting:
            self._join()
        assert self._statistics is not None
        return self._statistics

    @property
    def features(self) -> Tensor:
        """(pictures, width), of a set that keeps them."""
        assert self._kept is not None
        return torch.cat(self._kept)

    def _join(self) -> None:
        more = FeatureStatistics.of(torch.cat(self._waiting))
        self._statistics = more if self._statistics is None else self._statistics.merged(more)
        self._waiting = []
