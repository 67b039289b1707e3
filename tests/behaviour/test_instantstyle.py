"""InstantStyle moves style and leaves content, judged by the drawn world's truth over 64 pictures a setting."""

from __future__ import annotations

from functools import cache

import pytest

from semblance.demo.metrics import estimate
from semblance.demo.probe import leaked, style_gained
from semblance.demo.study import ADAPTERS, Pairs, Setting, Study

pytestmark = pytest.mark.behaviour

ALL = Setting("all blocks", "all")
STYLE = Setting("style blocks", "style")
SUBTRACTED = (0.5, 1.0)
PER_REFERENCE = {"SDXL": 2, "SD 1.5": 4}
"""With two, chance hides how much of the style SD 1.5's style blocks keep."""


class Results:
    """Settings measured once each."""

    def __init__(self, study: Study) -> None:
        self.plain, self.per_reference = study.plain(), study.pairs.per_reference
        self.of = cache(study.with_setting)

    def gained(self, setting: Setting) -> float:
        return style_gained(self.of(setting), self.plain)

    def leaked(self, setting: Setting) -> float:
        return leaked(self.of(setting), self.plain)


@pytest.fixture(scope="module", params=ADAPTERS)
def results(request: pytest.FixtureRequest) -> Results:
    return Results(Study.open(request.param, pairs=Pairs.draw(per_reference=PER_REFERENCE[request.param])))


def test_all_blocks_halve_the_distance_to_the_references_colours(results: Results) -> None:
    styled, plain = results.of(ALL)["palette"], results.plain["palette"]
    assert estimate(styled, results.per_reference).low <= 0.5 * estimate(plain, results.per_reference).high


def test_all_blocks_bring_the_features_nearer_to_the_references(results: Results) -> None:
    """By a quarter or so, not by half."""
    assert results.of(ALL)["gram"].mean() <= 0.9 * results.plain["gram"].mean()


def test_all_blocks_put_the_figure_where_the_references_stands(results: Results) -> None:
    """Otherwise there would be no content for the style blocks to leave out."""
    assert results.leaked(ALL) >= 0.3


def test_style_blocks_keep_the_style_and_leave_half_of_the_content(results: Results) -> None:
    assert results.gained(STYLE) >= 0.8 * results.gained(ALL)
    assert results.leaked(STYLE) <= 0.5 * results.leaked(ALL)


@pytest.mark.parametrize("setting", [ALL, STYLE], ids=lambda setting: setting.name)
def test_a_reference_never_changes_the_shape_that_is_asked_for(results: Results, setting: Setting) -> None:
    styled, plain = results.of(setting)["shape_right"], results.plain["shape_right"]
    assert estimate(styled, results.per_reference).high >= plain.mean().item() - 0.05
    assert results.of(setting)["shape_leaked"].mean() <= 0.05


def test_the_more_content_is_subtracted_the_less_comes_through(results: Results) -> None:
    settings = [ALL, *(Setting("subtracted", "all", subtract=strength) for strength in SUBTRACTED)]
    leaks = [results.leaked(setting) for setting in settings]
    assert all(after <= before + 0.03 for before, after in zip(leaks, leaks[1:], strict=False)), leaks
    assert leaks[-1] <= leaks[0] - 0.1, leaks
    kept = [results.of(setting)["shape_right"].mean().item() for setting in settings]
    assert min(kept) >= kept[0] - 0.12, kept
