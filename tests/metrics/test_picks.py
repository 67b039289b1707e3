"""The best rows by one measure, among those that reach floors in others."""

from __future__ import annotations

import math

import pytest

from semblance.metrics.picks import best, floor_of
from semblance.metrics.scores import Measure, Scores


def scores(**columns: tuple[float, ...]) -> Scores:
    """Columns by name; those called LPIPS are distances."""
    measures = tuple(Measure(name, values, name != "LPIPS") for name, values in columns.items())
    return Scores(tuple(f"row {row}" for row in range(len(measures[0].values))), measures, "made up")


def test_the_best_rows_come_first_and_equal_ones_in_their_order() -> None:
    assert best(scores(text=(0.1, 0.3, 0.2, 0.3)), 3, "text") == [1, 3, 2]
    assert best(scores(LPIPS=(0.1, 0.3, 0.2, 0.1)), 3, "LPIPS") == [0, 3, 2]


def test_a_floor_keeps_out_the_best_text_without_the_style() -> None:
    measured = scores(text=(0.9, 0.5, 0.8, 0.6), style=(0.1, 0.7, 0.6, 0.2))
    assert best(measured, 2, "text") == [0, 2]
    assert best(measured, 2, "text", {"style": 0.6}) == [2, 1]


def test_a_floor_of_a_distance_is_the_most_it_may_be() -> None:
    measured = scores(text=(0.9, 0.5, 0.8), LPIPS=(0.7, 0.2, 0.3))
    assert best(measured, 3, "text", {"LPIPS": 0.3}) == [2, 1]
    assert best(measured, 3, "text", {"LPIPS": 0.3, "text": 0.6}) == [2]


def test_fewer_rows_come_back_where_fewer_reach_the_floor() -> None:
    assert best(scores(text=(0.1, 0.2), style=(0.5, 0.1)), 2, "text", {"style": 0.3}) == [0]


def test_a_row_without_a_number_is_never_picked() -> None:
    assert best(scores(text=(0.1, math.nan, 0.3, 0.2)), 4, "text") == [2, 3, 0]
    assert best(scores(text=(0.5, 0.1, 0.3), style=(math.nan, 1.0, 1.0)), 3, "text", {"style": -9}) == [2, 1]


def test_the_better_half_is_a_floor() -> None:
    text, distance = Measure("text", (0.1, 0.4, 0.2, 0.3, 0.0), True), Measure("LPIPS", (0.1, 0.4, 0.2, 0.3), False)
    assert floor_of(text, 0.5) == 0.2  # three of five
    assert floor_of(distance, 0.5) == 0.2
    assert floor_of(text, 1) == 0.0


def test_no_row_above_the_floor_is_said_in_a_sentence() -> None:
    measured = scores(text=(0.1, 0.2), style=(0.5, 0.1), LPIPS=(0.3, 0.4))
    with pytest.raises(ValueError, match=r"No row of 2 reaches 'style' of at least 0\.6 \(the best row has 0\.5\)\."):
        best(measured, 1, "text", {"style": 0.6})
    with pytest.raises(ValueError, match=r"reaches all of: 'style' of at least 0\.4 .* and 'LPIPS' of at most 0\.2"):
        best(measured, 1, "text", {"style": 0.4, "LPIPS": 0.2})
    with pytest.raises(ValueError, match="No row has a number in 'text'"):
        best(scores(text=(math.nan,)), 1, "text")


def test_what_cannot_be_picked_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 can be picked"):
        best(scores(text=(0.1,)), 0, "text")
    with pytest.raises(ValueError, match="hold no measure 'colour'; they hold: text"):
        best(scores(text=(0.1,)), 1, "text", {"colour": 1})
    with pytest.raises(ValueError, match=r"found 0\."):
        floor_of(Measure("text", (0.1,), True), 0)
