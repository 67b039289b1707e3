"""Scores keep the order of their rows, know their pictures again, and say what they do not hold."""

from __future__ import annotations

import math

import pytest
import torch

from semblance.metrics.scores import Measure, Scores, fingerprint


def test_a_measure_ranks_the_best_row_first() -> None:
    assert Measure("text", (0.1, 0.3, 0.2, 0.3), True).ranking() == [1, 3, 2, 0]
    assert Measure("LPIPS", (0.1, 0.3, 0.2, 0.1), False).ranking() == [0, 3, 2, 1]


def test_rows_without_a_number_come_last_and_leave_the_others_sorted() -> None:
    values = (0.1, math.nan, 0.3, math.nan, 0.2)
    assert Measure("text", values, True).ranking() == [2, 4, 0, 1, 3]
    assert Measure("LPIPS", values, False).ranking() == [0, 4, 2, 1, 3]


def test_the_mean_keeps_small_values_beside_large_ones() -> None:
    assert Measure("text", (1e16, 1.0, -1e16), True).mean == 1 / 3


def test_an_interval_holds_the_mean_and_is_the_same_twice() -> None:
    values = torch.randn(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    measure = Measure("text", tuple(values.tolist()), True)
    low, high = measure.interval()
    assert low < measure.mean < high
    assert (low, high) == measure.interval() != measure.interval(seed=1)
    # 1.96 standard errors to each side, as of a mean of many rows.
    assert (high - low) / 2 == pytest.approx(1.96 * float(values.std()) / math.sqrt(200), rel=0.1)


def test_the_interval_of_one_row_is_its_value_twice() -> None:
    assert Measure("FID", (15.9,), False).interval() == pytest.approx((15.9, 15.9))


def test_a_measure_is_found_by_its_name() -> None:
    text = Measure("text", (0.1,), True)
    scores = Scores(("a heart",), (text, Measure("style", (0.2,), True)), "made up")
    assert scores["text"] is text
    assert repr(scores) == "1 rows of text, style"
    with pytest.raises(ValueError, match="hold no measure 'colour'; they hold: text, style. Choose one"):
        scores["colour"]


@pytest.mark.parametrize(
    ("rows", "values", "pictures"),
    [(("a",), (0.1, 0.2), ()), (("a", "b"), (0.1, 0.2), ("x",)), ((), (), ()), (("a", "b"), (0.1,), ("x", "y"))],
)
def test_columns_of_different_lengths_are_refused(rows: tuple, values: tuple, pictures: tuple) -> None:
    with pytest.raises(ValueError, match="same number of rows in every column"):
        Scores(rows, (Measure("text", values, True),), "made up", pictures)
    with pytest.raises(ValueError, match="at least one"):
        Scores(rows, (), "made up")


def test_a_fingerprint_tells_pictures_apart_at_the_bits_of_a_png() -> None:
    picture = torch.rand(24, 20, 3, generator=torch.Generator().manual_seed(1))
    saved = (picture * 255).floor() / 255  # ComfyUI cuts off what does not fit into 8 bits
    assert fingerprint(picture) == fingerprint(saved) == fingerprint(saved.double())
    assert fingerprint(picture.permute(2, 0, 1).contiguous().permute(1, 2, 0)) == fingerprint(picture)
    changed = saved.clone()
    changed[5, 7, 1] += 1 / 255
    assert fingerprint(changed) != fingerprint(saved)


def test_every_level_of_a_png_comes_back_as_itself() -> None:
    levels = torch.arange(256, dtype=torch.float32) / 255
    assert ((levels * 255).to(torch.uint8) == torch.arange(256)).all()


def test_a_fingerprint_tells_pictures_of_other_sizes_apart() -> None:
    assert fingerprint(torch.zeros(4, 6, 3)) != fingerprint(torch.zeros(6, 4, 3))
    assert fingerprint(torch.full((2, 2, 3), 1.5)) == fingerprint(torch.ones(2, 2, 3))
