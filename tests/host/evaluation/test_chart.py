"""The bar chart: where bars, whiskers and numbers stand."""

from __future__ import annotations

import numpy
import pytest
from PIL import Image, ImageColor

from semblance.host.evaluation.chart import MARGIN, MOST_BARS, WIDTH, Axis, Bar, Panel, axis_for, draw_chart, panels_of
from semblance.host.evaluation.drawing import INKS, LOOKS, Look
from semblance.host.evaluation.table import tabulate
from semblance.metrics.scores import Measure, Scores


def panel(*bars: Bar) -> Panel:
    return Panel("text", "higher is better", bars)


def painted(image: Image.Image, colour: str) -> numpy.ndarray:
    """Where the image has exactly this colour: (height, width)."""
    return (numpy.asarray(image) == ImageColor.getrgb(colour)).all(axis=2)


def runs(lines: numpy.ndarray) -> list[tuple[int, int]]:
    """Beginnings and ends of what is true in a row of pixels."""
    edges = numpy.flatnonzero(numpy.diff(numpy.concatenate([[0], lines.astype(int), [0]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


@pytest.mark.parametrize("look", LOOKS)
def test_each_bar_is_as_long_as_its_mean(look: Look) -> None:
    image, warning = draw_chart([panel(Bar("half", 0.5), Bar("whole", 1.0), Bar("below", -0.25))], look)
    bars = painted(image, INKS[look].bar)
    tall = [row for row in runs(bars.any(axis=1)) if row[1] - row[0] > 10]
    lengths = [bars[top + 4 : bottom - 4].any(axis=0).nonzero()[0] for top, bottom in tall]
    half, whole, below = lengths
    assert len(tall) == 3 and warning == ""
    assert (whole[-1] - whole[0]) == pytest.approx(2 * (half[-1] - half[0]), abs=4)
    assert half[0] == whole[0] and below[-1] == pytest.approx(half[0], abs=2)
    assert (half[-1] - half[0]) == pytest.approx(2 * (below[-1] - below[0]), abs=4)


def test_the_whisker_ends_where_the_interval_does() -> None:
    bar = Bar("a", 0.5, (0.25, 0.75))
    image, _ = draw_chart([panel(bar)], "light")
    bars = painted(image, INKS["light"].bar)
    left, right = bars.any(axis=0).nonzero()[0][[0, -1]]
    (top, bottom), *_ = [row for row in runs(bars.any(axis=1)) if row[1] - row[0] > 10]
    ink = painted(image, INKS["light"].text)[(top + bottom) // 2, left:]
    low, high = (left + end for end in max(runs(ink), key=lambda run: run[1] - run[0]))
    assert low - left == pytest.approx((right - left) / 2, abs=4)
    assert high - left == pytest.approx((right - left) * 1.5, abs=4)


@pytest.mark.parametrize("count", [1, 12, 13, 30, MOST_BARS + 5])
def test_bars_never_leave_the_picture(count: int) -> None:
    bars = tuple(
        Bar(f"a label of {number} that is much too long to stand beside its bar", number) for number in range(count)
    )
    image, _ = draw_chart([panel(*bars), panel(*bars[:1])], "dark")
    edge = numpy.asarray(image).astype(int)
    paper = ImageColor.getrgb(INKS["dark"].paper)
    assert image.width == WIDTH
    for side in (edge[:, : MARGIN - 2], edge[:, 2 - MARGIN :], edge[:8], edge[-8:]):
        assert (side == paper).all()


def test_the_axis_holds_zero_and_everything_drawn_and_its_ticks_are_round() -> None:
    axis = axis_for([Bar("a", 0.3, (0.2, 0.47)), Bar("b", -0.1)], 0, 100)
    assert (axis.low, axis.high) == (-0.1, 0.47)
    assert axis.ticks() == pytest.approx([-0.1, 0, 0.1, 0.2, 0.3, 0.4])
    assert Axis(0, 5, 0, 100).ticks() == [0, 1, 2, 3, 4, 5]
    assert [axis.place(end) for end in (-0.1, 0.47)] == [0, 100]


@pytest.mark.parametrize("mean", [0.0, float("nan"), float("inf"), 1e-300, 1e12, -5.0])
def test_any_number_can_be_drawn(mean: float) -> None:
    draw_chart([panel(Bar("a", mean))], "light")


def test_a_measure_has_a_panel_with_the_labels_that_have_it() -> None:
    both = Scores(("x", "y"), (Measure("text", (1.0, 2.0), True), Measure("LPIPS", (0.1, 0.2), False)), "p")
    one = Scores(("x",), (Measure("text", (1.5,), True),), "p")
    text, lpips = panels_of(tabulate([both, one], ["both", "one"]))
    assert [bar.label for bar in text.bars] == ["both", "one"] and [bar.label for bar in lpips.bars] == ["both"]
    assert text.bars[0].interval == (1.0, 2.0) and text.bars[1].interval is None
    assert (text.note, lpips.note) == ("higher is better", "lower is better")
