"""Which rows are the best by one measure, among those that are good enough by others."""

from __future__ import annotations

import math
from collections.abc import Mapping

from .scores import Measure, Scores


def best(scores: Scores, count: int, by: str, floors: Mapping[str, float] = {}) -> list[int]:
    """Numbers of the `count` best rows by the measure `by`, the best first; of equal rows the earlier first.

    `floors` gives other measures a bound that a row must reach: at least this much where higher is better, at most
    this much otherwise. A text score alone picks the pictures that took up least of the style; a floor on the style
    keeps those out. Fewer rows than `count` come back where fewer reach the floors. A row without a number in one of
    these measures is never picked.
    Raises ValueError where `count` is below 1, a measure is not there, or no row reaches the floors.
    """
    if count < 1:
        raise ValueError(f"The best {count} rows were asked for; at least 1 can be picked. Raise the count.")
    bounded = [(scores[name], floor) for name, floor in floors.items()]
    ranked = [row for row in scores[by].ranking() if not math.isnan(scores[by].values[row])]
    picked = [row for row in ranked if all(_reaches(measure, row, floor) for measure, floor in bounded)]
    if not picked:
        raise ValueError(_nothing_reaches(scores, by, bounded))
    return picked[:count]


def floor_of(measure: Measure, share: float) -> float:
    """The floor that the better `share` of a measure's rows reaches, e.g. 0.5 for the better half, rounded up.

    Raises ValueError where `share` is outside (0, 1] or no row has a number.
    """
    if not 0 < share <= 1:
        raise ValueError(f"A share of rows lies above 0 and up to 1, found {share}. Give e.g. 0.5 for the better half.")
    numbers = [measure.values[row] for row in measure.ranking() if not math.isnan(measure.values[row])]
    if not numbers:
        raise ValueError(f"No row has a number in '{measure.name}', so it has no floor. Measure the pictures again.")
    return numbers[math.ceil(share * len(numbers)) - 1]


def _reaches(measure: Measure, row: int, floor: float) -> bool:
    value = measure.values[row]
    return value >= floor if measure.higher_is_better else value <= floor


def _nothing_reaches(scores: Scores, by: str, bounded: list[tuple[Measure, float]]) -> str:
    if not bounded:
        return f"No row has a number in '{by}', so there is no best one. Measure the pictures again."
    asked = " and ".join(
        f"'{measure.name}' of at {'least' if measure.higher_is_better else 'most'} {floor:g} "
        f"(the best row has {measure.values[measure.ranking()[0]]:.4g})"
        for measure, floor in bounded
    )
    reached = "reaches" if len(bounded) == 1 else "reaches all of:"
    return f"No row of {len(scores.rows)} {reached} {asked}. Loosen a floor, or score more pictures."
