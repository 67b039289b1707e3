"""How images attend to a reference picture: what Reference Style is set to, as a method and a family both name it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Frequencies:
    """Factors of the reference's keys by frequency, at the beginning of the noise schedule and at its end."""

    structure: tuple[float, float] = (0.0, 0.5)
    """Of the highest frequency: how much of the reference's places and shapes is copied."""
    detail: tuple[float, float] = (1.0, 1.2)
    """Of the lowest: how strongly what is alike is taken over, whatever its place. Where a model does not rotate keys,
    of all channels."""
    falloff: float = 2.5
    """How many frequencies count as high: 0 none, 1 half of them, large values all but the lowest."""

    def at(self, progress: float) -> tuple[float, float]:
        """The two factors at a fraction of the schedule."""
        high, low = (start + (end - start) * progress for start, end in (self.structure, self.detail))
        return high, low


PLAIN = Frequencies((1.0, 1.0), (1.0, 1.0))
"""The reference's keys as they are."""


@dataclass(frozen=True)
class Statistics:
    """How far tokens of the images take the mean and deviation of the reference's, 0 to 1."""

    queries_and_keys: float = 0.0
    values: float = 0.0
