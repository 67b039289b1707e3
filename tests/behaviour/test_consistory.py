"""ConsiStory finds its subject and leaves the scenes alone, judged by the drawn world's truth over many stories.

Aimed at was also a subject 30 % more alike, and layouts that dropout and query blending each make more different. The
demo model cannot show them (demo/models/README.md): its colours do not go through the attention that is shared, and
where little is shared there is little for the two to hold back.
"""

from __future__ import annotations

import pytest

from semblance.demo.consistory import BARE, OFFICIAL, PLAIN, UNTAUGHT, Told, drawings, stories_of, tell_all
from semblance.demo.metrics import estimate
from semblance.demo.study import Study

pytestmark = pytest.mark.behaviour

STORIES, FEWER = 24, 16


class Results:
    def __init__(self, study: Study) -> None:
        stories = stories_of(STORIES)
        self.plain, self.official = (tell_all(study, stories, way) for way in (PLAIN, OFFICIAL))
        self.bare, self.untaught = (tell_all(study, stories[:FEWER], way) for way in (BARE, UNTAUGHT))


@pytest.fixture(scope="module")
def study() -> Study:
    """SDXL's blocks; for SD 1.5's there is no LoRA."""
    return Study.open("SDXL")


@pytest.fixture(scope="module")
def results(study: Study) -> Results:
    return Results(study)


def gain(told: Told, other: Told, name: str) -> float:
    """How much higher the mean of a measure is."""
    return (getattr(told, name).mean() - getattr(other, name).mean()).item()


def test_the_masks_lie_on_the_figure_once_the_word_does(results: Results) -> None:
    """At least twice as well as without the LoRA, with 95 % confidence: 0.54 of the union, on a grid of 8 x 8."""
    taught, untaught = estimate(results.official.mask), estimate(results.untaught.mask)
    assert taught.low >= 2 * untaught.high, (taught, untaught)


@pytest.mark.parametrize("name", ["shape_right", "place_right"])
def test_scenes_stay_what_was_asked_for(results: Results, name: str) -> None:
    """Within 3 points of plain, and that within 3 of plain without the LoRA."""
    assert gain(results.official, results.plain, name) >= -0.03
    assert getattr(results.plain, name)[:FEWER].mean() >= getattr(results.bare, name).mean() - 0.03


def test_layouts_stay_different(results: Results) -> None:
    """At least four fifths of plain's difference, with 95 % confidence."""
    kept = estimate(results.official.layouts - 0.8 * results.plain.layouts)
    assert kept.low >= 0, (estimate(results.plain.layouts), estimate(results.official.layouts))


def test_backgrounds_do_not_leak(results: Results) -> None:
    """They may grow alike by a tenth: the figure's edges are in both."""
    lost = estimate(results.plain.background - results.official.background)
    assert lost.high <= 0.1 * results.plain.background.mean(), (lost, estimate(results.plain.background))


def test_subjects_are_measured_far_from_and_near_to_each_other(study: Study, results: Results) -> None:
    """The measure that ConsiStory does not move here is one that a subject kept alike would move."""
    same = drawings(study.judge, STORIES)
    assert estimate(same.subject).high <= 0.3 * estimate(results.plain.subject).low


def test_the_small_models_colours_do_not_go_through_what_is_shared(results: Results) -> None:
    """Not what ConsiStory is for, but what these models are: when this fails, aim for 30 % less again."""
    gained = estimate(results.plain.subject - results.official.subject)
    assert gained.high <= 0.1 * results.plain.subject.mean(), (gained, estimate(results.plain.subject))
