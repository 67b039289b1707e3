"""Reference Style brings the reference's style and keeps the prompt's figure, on the flow transformer."""

from __future__ import annotations

from functools import cache

import pytest

from semblance.demo.metrics import Measures, estimate
from semblance.demo.probe import style_gained
from semblance.demo.reference_style import HALF, SHARED, Way, with_way
from semblance.demo.study import PER_REFERENCE, Study

pytestmark = pytest.mark.behaviour


class Results:
    """Settings measured once each."""

    def __init__(self, study: Study) -> None:
        self.plain = study.plain()
        self.of = cache(lambda way: with_way(study, way))

    def gained(self, way: Way) -> float:
        return style_gained(self.of(way), self.plain)


@pytest.fixture(scope="module")
def results() -> Results:
    return Results(Study.open("Flux"))


def colours(found: Measures) -> tuple[float, float]:
    interval = estimate(found["palette"], PER_REFERENCE)
    return interval.low, interval.high


def test_the_reference_brings_its_colours(results: Results) -> None:
    assert colours(results.of(SHARED))[1] < 0.7 * colours(results.plain)[0]


def test_more_strength_brings_more_style(results: Results) -> None:
    assert 0 < results.gained(HALF) < results.gained(SHARED)


def test_the_asked_figure_is_kept(results: Results) -> None:
    kept, plain = results.of(SHARED)["shape_right"].mean(), results.plain["shape_right"].mean()
    assert kept >= plain - 0.1
    assert results.of(SHARED)["shape_leaked"].mean() <= 0.1
