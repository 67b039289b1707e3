"""StyleDrop on its own kind: the small masked transformer learns a drawing's style and keeps figures in their place."""

from __future__ import annotations

import pytest

from semblance.demo.captions import full_captions
from semblance.demo.metrics import estimate, measure
from semblance.demo.study import MASKED as TOPOLOGY
from semblance.demo.study import PER_REFERENCE, Pairs, Study
from semblance.demo.styledrop import MASKED, ROUND_SCALE
from semblance.tests.behaviour.tunings import Results

pytestmark = pytest.mark.behaviour
REFERENCES = 4


@pytest.fixture(scope="module")
def results() -> Results:
    return Results(MASKED, REFERENCES)


def test_words_alone_settle_place_and_colours() -> None:
    study = Study.open(TOPOLOGY, pairs=Pairs.draw(per_reference=2))
    asked = study.pairs.asked
    found = measure(study.sample(full_captions(asked)), asked, asked, study.judge)
    assert estimate(found["place_right"]).high >= 0.85, estimate(found["place_right"])
    assert found["palette"].mean() <= 30, "47 without colours in the words"


def test_an_adapter_brings_the_style_of_its_picture(results: Results) -> None:
    tuned, plain = (estimate(found["palette"], PER_REFERENCE) for found in (results.first(ROUND_SCALE), results.plain))
    assert tuned.high <= 0.5 * plain.mean, (tuned, plain)
    assert results.gained(results.first(ROUND_SCALE)) >= 0.25


def test_the_asked_place_is_kept(results: Results) -> None:
    kept = results.first(ROUND_SCALE)
    assert kept["place_right"].mean() >= results.plain["place_right"].mean() - 2 / (REFERENCES * PER_REFERENCE)


def test_a_round_of_feedback_keeps_the_style(results: Results) -> None:
    first, second = results.first(ROUND_SCALE), results.second()
    assert second["palette"].mean().item() <= 0.5 * results.plain["palette"].mean().item()
    assert results.gained(second) >= 0.7 * results.gained(first)
