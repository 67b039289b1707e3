"""Numbers as people read them: as many digits as say something."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...metrics.scores import Measure

DIGITS = 3
"""That count, of the largest of several values and of an interval's width."""
MOST_DECIMALS = 9
MOST_TICKS = 6
"""Of an axis, about."""
LARGE = 1e6
"""From here on a number is written with its power of ten."""


def shown(value: float) -> str:
    """One number alone, in four digits that count."""
    return f"{value:.4g}" if math.isfinite(value) else "not a number"


def round_ticks(low: float, high: float) -> list[float]:
    """Round numbers from `low` to `high`, for an axis; 0 is among them if it lies there."""
    rough = (high - low) / MOST_TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def shown_alike(values: Sequence[float]) -> list[str]:
    """Numbers that are compared with each other, all with the same decimals."""
    decimals = _decimals(max((abs(value) for value in values if math.isfinite(value)), default=0))
    return [_rounded(value, decimals) for value in values]


def estimated(means: Sequence[float], intervals: Sequence[tuple[float, float] | None]) -> list[str]:
    """Means with their intervals, all to the decimals that the widest interval makes worth saying."""
    widths = [interval[1] - interval[0] for interval in intervals if interval is not None]
    if not widths:
        return shown_alike(means)
    decimals = _decimals(max(widths))
    return [_estimate(mean, interval, decimals) for mean, interval in zip(means, intervals, strict=True)]


def interval_of(measure: Measure) -> tuple[float, float] | None:
    """The interval of the mean; None where one row gives none, or where values are not numbers."""
    return measure.interval() if len(measure.values) > 1 and all(map(math.isfinite, measure.values)) else None


def _estimate(mean: float, interval: tuple[float, float] | None, decimals: int) -> str:
    between = "" if interval is None else " ({} to {})".format(*(_rounded(end, decimals) for end in interval))
    return _rounded(mean, decimals) + between


def _rounded(value: float, decimals: int) -> str:
    return f"{value:.{decimals}f}" if abs(value) < LARGE else shown(value)


def _decimals(size: float) -> int:
    return min(MOST_DECIMALS, max(0, DIGITS - 1 - math.floor(math.log10(size)))) if size > 0 else DIGITS
