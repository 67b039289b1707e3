"""InstantStyle moves style and leaves content, judged by the drawn world's truth over 64 pictures a setting."""

from __future__ import annotations

from functools import cache

import pytest

from semblance.demo.metrics import estimate
from semblance.demo.probe import style_gained
from semblance.demo.study import ADAPTERS, PER_REFERENCE, Setting, Study

ALL = Setting("all blocks", "all")
STYLE = Setting("style blocks", "style")
SUBTRACTED = (0.5, 1.0)


class Results:
    """Settings measured once each."""

    def __init__(self, study: Study) -> None:
        self.plain = study.plain()
        self.of = cache(study.with_setting)

    def gained(self, setting: Setting) -> float:
        return style_gained(self.of(setting), self.plain)

    def leaked(self, setting: Setting) -> float:
        """More than plain shows of a shape that nobody asked for."""
        return (self.of(setting)["leaked"].mean() - self.plain["leaked"].mean()).item()


@pytest.fixture(scope="module", params=ADAPTERS)
def results(request: pytest.FixtureRequest) -> Results:
    return Results(Study.open(request.param))


def test_all_blocks_halve_the_distance_to_the_references_colours(results: Results) -> None:
    styled, plain = results.of(ALL)["palette"], results.plain["palette"]
    assert estimate(styled, PER_REFERENCE).low <= 0.5 * estimate(plain, PER_REFERENCE).high


def test_all_blocks_bring_the_features_nearer_to_the_references(results: Results) -> None:
    """By a quarter or so, not by half: these adapters carry colours, and hardly the texture's pattern."""
    assert results.of(ALL)["gram"].mean() <= 0.9 * results.plain["gram"].mean()


def test_style_blocks_keep_the_style_and_leave_half_of_the_content(results: Results) -> None:
    assert results.gained(STYLE) >= 0.75 * results.gained(ALL)
    assert results.leaked(STYLE) <= 0.5 * results.leaked(ALL) + 0.03


def test_style_blocks_obey_the_prompt_as_plain_does(results: Results) -> None:
    styled, plain = results.of(STYLE)["shape_right"], results.plain["shape_right"]
    assert estimate(styled, PER_REFERENCE).high >= plain.mean().item() - 0.05


def test_subtracting_the_content_lets_no_more_of_it_through_and_does_not_cost_the_prompt(results: Results) -> None:
    """There is little to take away: where the prompt names a shape, none of the reference's comes through."""
    settings = [ALL, *(Setting("subtracted", "all", subtract=strength) for strength in SUBTRACTED)]
    leaks = [results.leaked(setting) for setting in settings]
    assert all(after <= before + 0.02 for before, after in zip(leaks, leaks[1:], strict=False)), leaks
    kept = [results.of(setting)["shape_right"].mean().item() for setting in settings[:2]]
    assert kept[1] >= kept[0] - 0.03
