"""On the Flux-like demo model, Reference Style and StyleID's keys and values bring a style; places stay."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from semblance.demo.captions import full_captions
from semblance.demo.metrics import estimate, measure
from semblance.demo.probe import style_gained
from semblance.demo.reference_style import FOUR_TIMES, HALF, ONCE, TOPOLOGY, Way, plain, with_way
from semblance.demo.study import Pairs, Study
from semblance.demo.styleid import BACK, DTYPE, KEYS_AND_VALUES, paint, pairs_of
from semblance.demo.styleid import measure as measure_painted

pytestmark = pytest.mark.behaviour
PER_REFERENCE = 2
PAIRS = 8


class Results:
    """Settings measured once each."""

    def __init__(self) -> None:
        self.study = Study.open(TOPOLOGY, pairs=Pairs.draw(per_reference=PER_REFERENCE))
        self.plain = plain(self.study)
        self.of = cache(lambda way: with_way(self.study, way))


@pytest.fixture(scope="module")
def results() -> Results:
    return Results()


def test_words_alone_settle_place_and_colours(results: Results) -> None:
    asked = results.study.pairs.asked
    found = measure(results.study.sample(full_captions(asked)), asked, asked, results.study.judge)
    assert estimate(found["place_right"]).high >= 0.9, estimate(found["place_right"])
    assert found["palette"].mean() <= 0.65 * results.plain["palette"].mean()


def test_a_reference_counted_four_times_brings_its_colours(results: Results) -> None:
    styled, without = (estimate(found["palette"], PER_REFERENCE) for found in (results.of(FOUR_TIMES), results.plain))
    assert styled.mean <= 0.3 * without.mean, (styled, without)
    assert styled.high < without.low, (styled, without)


def test_it_brings_the_features_nearer(results: Results) -> None:
    styled, without = (estimate(found["gram"], PER_REFERENCE) for found in (results.of(FOUR_TIMES), results.plain))
    assert styled.high < without.low, (styled, without)


@pytest.mark.parametrize("less", [HALF, ONCE], ids=["strength", "weight"])
def test_a_higher_strength_or_weight_brings_more_of_the_style(results: Results, less: Way) -> None:
    some, whole = (style_gained(results.of(way), results.plain) for way in (less, FOUR_TIMES))
    assert 0.05 < some < whole, (some, whole)


def test_the_asked_figure_stays_as_it_was_asked_for(results: Results) -> None:
    for way in (ONCE, FOUR_TIMES):
        assert results.of(way)["place_right"].mean() >= 0.9, way
        assert results.of(way)["shape_right"].mean() >= results.plain["shape_right"].mean() - 0.15, way
        assert results.of(way)["shape_leaked"].mean() <= 0.1, way


def test_styleids_keys_and_values_carry_the_style_where_all_looking_is_attention() -> None:
    """In the small UNets they move nothing. About half of the figure goes with the style here."""
    study, pairs = Study.open(TOPOLOGY, DTYPE), pairs_of(64).take(torch.arange(PAIRS))
    made = paint(study, pairs, (BACK, KEYS_AND_VALUES), steps=20)
    back, injected = (measure_painted(study.judge, pairs, made[way.name]) for way in (BACK, KEYS_AND_VALUES))
    assert injected.palette.mean() <= 0.5 * back.palette.mean()
    assert injected.gram.mean() <= 0.85 * back.gram.mean()
    assert injected.overlap.mean() >= 0.3
