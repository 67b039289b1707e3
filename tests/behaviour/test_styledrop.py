"""StyleDrop learns a style from one drawing, and its scales and rounds trade that for the prompt as they say."""

from __future__ import annotations

import pytest

from semblance.demo.metrics import estimate
from semblance.demo.study import PER_REFERENCE
from semblance.demo.styledrop import ROUND_SCALE, STYLE_SCALES, UNET
from semblance.tests.behaviour.tunings import Results

pytestmark = pytest.mark.behaviour
REFERENCES = 4
SPREAD = 0.05
"""What the style gained changes by from one set of noise to another."""


@pytest.fixture(scope="module")
def results() -> Results:
    return Results(UNET, REFERENCES)


def test_an_adapter_brings_the_style_of_its_picture(results: Results) -> None:
    assert results.gained(results.first(ROUND_SCALE)) >= 0.38, "0.48 was measured"


def test_a_higher_style_scale_brings_more_of_the_style(results: Results) -> None:
    gained = [results.gained(results.first(scale)) for scale in STYLE_SCALES]
    assert all(after >= before - SPREAD for before, after in zip(gained, gained[1:], strict=False)), gained
    assert gained[-1] >= gained[0] + SPREAD, gained


def test_the_asked_shape_is_kept(results: Results) -> None:
    kept = results.first(ROUND_SCALE)
    assert kept["shape_right"].mean() >= results.plain["shape_right"].mean() - 2 / (REFERENCES * PER_REFERENCE), (
        "as many were measured"
    )
    assert kept["shape_leaked"].mean() <= 0.1


def test_a_round_of_feedback_keeps_the_style_and_the_prompt(results: Results) -> None:
    first, second = results.first(ROUND_SCALE), results.second()
    assert second["palette"].mean().item() <= estimate(first["palette"], PER_REFERENCE).high
    assert results.gained(second) >= 0.75 * results.gained(first), "0.43 of 0.48 was measured"
    assert second["shape_right"].mean() >= first["shape_right"].mean() - 1 / (REFERENCES * PER_REFERENCE)
