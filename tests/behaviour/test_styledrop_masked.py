"""StyleDrop on its own kind: the small masked transformer learns a drawing's style and keeps figures in their place."""

from __future__ import annotations

import pytest
import torch

from semblance.demo.captions import full_captions
from semblance.demo.metrics import estimate, measure
from semblance.demo.study import MASKED as TOPOLOGY
from semblance.demo.study import PER_REFERENCE, Pairs, Study
from semblance.demo.styledrop import MASKED, ROUND_SCALE
from semblance.demo.world import draw
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


def test_tokens_leave_figures_to_be_named(results: Results) -> None:
    """So what is rough in its pictures is not the VQ model's doing."""
    study, asked = results.study, results.study.pairs.asked
    with torch.inference_mode():
        again = study.demo.vae.decode(study.demo.vae.encode(draw(asked).pictures.movedim(1, -1))).movedim(-1, 1)
    assert measure(again, asked, asked, study.judge)["shape_right"].mean() >= 0.9, "0.97 of 64 was measured"


def test_an_adapter_brings_the_style_of_its_picture(results: Results) -> None:
    tuned, plain = (estimate(found["palette"], PER_REFERENCE) for found in (results.first(ROUND_SCALE), results.plain))
    assert tuned.high <= 0.5 * plain.mean, (tuned, plain)
    assert results.gained(results.first(ROUND_SCALE)) >= 0.25


def test_the_asked_place_is_kept(results: Results) -> None:
    """At chance one in nine is right."""
    kept, plain = (estimate(found["place_right"], PER_REFERENCE) for found in (results.first(0.0), results.plain))
    assert kept.high >= plain.mean - 0.05, (kept, plain)
    assert kept.mean >= 0.5, (kept, plain)


def test_a_round_of_feedback_keeps_the_style(results: Results) -> None:
    first, second = results.first(ROUND_SCALE), results.second()
    assert second["palette"].mean().item() <= 0.5 * results.plain["palette"].mean().item()
    assert results.gained(second) >= 0.7 * results.gained(first)
