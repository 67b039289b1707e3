"""Numbers as people read them: as many digits as say something."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...metrics.scores import Measure

NOT_A_NUMBER = "not a number"
DIGITS = 3
"""That count, of the largest of several values and of an interval's width."""
MOST_DECIMALS = 9


def shown(value: float) -> str:
    """One number alone, in four digits that count."""
    return f"{value:.4g}" if math.isfinite(value) else NOT_A_NUMBER


def shown_alike(values: Sequence[float]) -> list[str]:
    """Numbers that are compared with each other, all with the same decimals."""
    decimals = _decimals(max((abs(value) for value in values if math.isfinite(value)), default=0))
    return [f"{value:.{decimals}f}" if math.isfinite(value) else NOT_A_NUMBER for value in values]


def estimated(mean: float, interval: tuple[float, float] | None) -> str:
    """A mean with its interval, to the decimals that the width of the interval makes worth saying."""
    if interval is None:
        return shown(mean)
    decimals = _decimals(interval[1] - interval[0])
    low, high = (f"{end:.{decimals}f}" for end in interval)
    return f"{mean:.{decimals}f} ({low} to {high})"


def interval_of(measure: Measure) -> tuple[float, float] | None:
    """The interval of the mean; None where one row gives none, or where values are not numbers."""
    return measure.interval() if len(measure.values) > 1 and all(map(math.isfinite, measure.values)) else None


def _decimals(size: float) -> int:
    return min(MOST_DECIMALS, max(0, DIGITS - 1 - math.floor(math.log10(size)))) if size > 0 else DIGITS
