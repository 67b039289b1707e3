"""Where, when and on which area: weights in closed form, and sentences for what cannot be meant."""

from __future__ import annotations

import math

import pytest
import torch

from semblance.attention.engine.call import AttentionSite
from semblance.attention.engine.moment import Moment
from semblance.attention.engine.scope import CURVES, ImageMask, ScheduleWindow, Scope, finite

SITE = AttentionSite("cross", "output", 1, 4)


def sigma_at(percent: float) -> float:
    """A schedule whose noise falls from 10 to 0 in a straight line."""
    return 1e9 if percent <= 0 else 10 * (1 - percent)


def moment(progress: float) -> Moment:
    return Moment(10 * (1 - progress), 0, 10, progress, sigma_at)


def test_a_block_weighs_what_it_was_given_at_every_depth_and_kind() -> None:
    scope = Scope({"output.1": 0.5, "input.8": -1.0})
    assert scope.weight(SITE, moment(0.3)) == 0.5
    assert scope.weight(AttentionSite("self", "input", 8), moment(0.3)) == -1.0


def test_a_block_left_out_weighs_nothing() -> None:
    scope = Scope({"output.1": 1.0})
    assert scope.weight(AttentionSite("cross", "output", 10), moment(0.3)) == 0.0
    assert scope.weight(AttentionSite("cross", "output", 2), moment(0.3)) == 0.0


@pytest.mark.parametrize(("progress", "weight"), [(0.1, 0), (0.25, 1), (0.5, 1), (0.75, 1), (0.76, 0), (1.0, 0)])
def test_a_window_holds_both_its_ends(progress: float, weight: float) -> None:
    assert ScheduleWindow(0.25, 0.75).weight(moment(progress)) == weight


def test_a_whole_window_holds_noise_above_the_schedule_and_none_at_all() -> None:
    assert ScheduleWindow().weight(Moment(20.0, 0, 1, 0.0, sigma_at)) == 1
    assert ScheduleWindow().weight(Moment(0.0, 0, 1, 1.0, sigma_at)) == 1


def test_on_its_edge_a_window_goes_by_the_noise_level_not_by_the_rounded_share() -> None:
    rounded_down, rounded_up = 0.25 - 1e-9, 0.25 + 1e-9
    for progress in (rounded_down, rounded_up):
        assert ScheduleWindow(0.25, 0.5).weight(Moment(7.5, 0, 1, progress, sigma_at)) == 1
        assert ScheduleWindow(0.1, 0.25).weight(Moment(7.5, 0, 1, progress, sigma_at)) == 1
        fading = ScheduleWindow(0.25, 0.5, CURVES["fade in"]).weight(Moment(7.5, 0, 1, progress, sigma_at))
        assert fading == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("curve", "weights"),
    [
        ("constant", [1, 1, 1, 1, 1]),
        ("fade in", [0, 0.25, 0.5, 0.75, 1]),
        ("fade out", [1, 0.75, 0.5, 0.25, 0]),
        ("rise and fall", [0, 0.5, 1, 0.5, 0]),
        ("fall and rise", [1, 0.5, 0, 0.5, 1]),
    ],
)
def test_curves_run_from_the_windows_start_to_its_end(curve: str, weights: list[float]) -> None:
    window = ScheduleWindow(0.5, 1.0, CURVES[curve])
    found = [window.weight(moment(0.5 + place / 2)) for place in (0, 0.25, 0.5, 0.75, 1)]
    assert found == pytest.approx(weights)


def test_a_curve_of_ones_own_holds_beyond_its_ends() -> None:
    window = ScheduleWindow(curve=((0.2, 1.0), (0.6, -1.0)))
    found = [window.weight(moment(place)) for place in (0.0, 0.2, 0.4, 0.6, 1.0)]
    assert found == pytest.approx([1, 1, 0, -1, -1])


def test_a_block_weight_and_a_curve_multiply() -> None:
    scope = Scope({"output.1": 0.5}, ScheduleWindow(curve=CURVES["fade in"]))
    assert scope.weight(SITE, moment(0.5)) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("start", "end", "sentence"),
    [
        (0.5, 0.5, r"Start \(0.5\) must come before end \(0.5\)"),
        (0.8, 0.2, r"Start \(0.8\) must come before end \(0.2\). Swap them"),
        (-0.1, 0.5, r"Start is -0.1 and end 0.5; both must lie between 0 and 1"),
        (0.0, 1.5, r"both must lie between 0 and 1"),
        (math.nan, 1.0, r"both must lie between 0 and 1"),
    ],
)
def test_a_window_that_cannot_be_is_refused_in_a_sentence(start: float, end: float, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ScheduleWindow(start, end)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (torch.ones(8, 8), r"shape \(8, 8\); expected \(masks, height, width\)"),
        (torch.ones(1, 0, 8), r"shape \(1, 0, 8\).*none of them 0"),
        (torch.ones(0, 8, 8), r"shape \(0, 8, 8\)"),
        (torch.full((1, 4, 4), math.nan), "not numbers"),
        (torch.full((1, 4, 4), math.inf), "not numbers"),
        (torch.zeros(1, 4, 4), "all black"),
    ],
)
def test_a_mask_that_cannot_be_is_refused_in_a_sentence(values: torch.Tensor, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ImageMask(values)


def test_only_finite_numbers_pass() -> None:
    assert finite(-1.5, "The strength") == -1.5
    for number in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match="The strength is .*Enter a finite one"):
            finite(number, "The strength")


def test_the_description_says_where_when_and_on_which_area() -> None:
    plain = Scope({"output.1": 1.0, "input.8": 0.25, "middle.0": 0.0})
    assert repr(plain) == "output.1=1, input.8=0.25"
    assert repr(Scope({})) == "no block"
    mask = ImageMask(torch.ones(2, 48, 64))
    whole = Scope({"output.1": 1.0}, ScheduleWindow(0.2, 0.8, CURVES["fade in"]), mask)
    assert repr(whole) == "output.1=1, 0.2 to 0.8, curve ((0.0, 0.0), (1.0, 1.0)), 2 masks of 64x48"
