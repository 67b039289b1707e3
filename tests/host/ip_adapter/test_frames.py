"""Weights over frames equal those of ComfyUI_IPAdapter_plus, and are right where it divides by zero."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from semblance.host.ip_adapter.frames import FrameSettings, Method, line_up
from semblance.tests.support.frozen_cases import load_reference

_, FACTS = load_reference("ipadapter_plus")
LINEAR = FrameSettings((0.0, 1.0), "linear", 4, 0, 9999, 0, 0, "full batch")


def settings_of(inputs: dict[str, Any]) -> FrameSettings:
    return FrameSettings(
        written=tuple(float(entry) for entry in inputs["weights"].split(",")),
        timing=inputs["timing"],
        frames=inputs["frames"],
        start=inputs["start_frame"],
        end=inputs["end_frame"],
        frames_before=inputs["add_starting_frames"],
        frames_after=inputs["add_ending_frames"],
        method=inputs["method"],
    )


@pytest.mark.parametrize("number", range(len(FACTS["units"]["weights"])))
def test_frames_equal_those_of_ipadapter_plus(number: int) -> None:
    case = FACTS["units"]["weights"][number]
    found = line_up(settings_of(case["inputs"]), case["images"] or 0)
    assert found.weights == pytest.approx(case["weights"], abs=1e-12)
    assert len(found.weights) == case["total_frames"]
    assert found.pictures == (None if case["image_1"] is None else tuple(case["image_1"]))
    assert found.others == (None if case["image_2"] is None else tuple(case["image_2"]))
    assert found.weights[::-1] == pytest.approx(case["weights_invert"], abs=1e-12)


@pytest.mark.parametrize("timing", ["linear", "ease_in_out", "ease_in", "ease_out", "random"])
def test_a_change_within_one_frame_arrives_in_it(timing: Any) -> None:
    assert line_up(replace(LINEAR, timing=timing, start=2, end=3), 0).weights == (0, 0, 1, 1)
    assert line_up(replace(LINEAR, timing=timing, start=2, end=2), 0).weights == (0, 0, 1, 1)


def test_random_weights_hang_on_the_seed_and_lie_between_the_ends() -> None:
    random = replace(LINEAR, timing="random", frames=20)
    first, again, other = (line_up(replace(random, seed=seed), 0).weights for seed in (3, 3, 4))
    assert first == again != other
    assert min(first) >= 0 and max(first) <= 1 == first[-1]


@pytest.mark.parametrize("timing", ["custom", "linear"])
def test_no_weights_are_a_weight_of_zero(timing: Any) -> None:
    assert set(line_up(replace(LINEAR, written=(), timing=timing), 0).weights) == {0.0}


def test_one_frame_is_counted_as_two_as_it_has_a_first_and_a_last() -> None:
    assert line_up(replace(LINEAR, frames=1), 0).weights == (0, 1)


def test_starting_and_ending_frames_are_added_without_pictures_too() -> None:
    assert line_up(replace(LINEAR, frames=2, frames_before=2, frames_after=1), 0).weights == (0, 0, 0, 1, 1)


def test_a_change_that_ends_before_it_begins_is_refused() -> None:
    with pytest.raises(ValueError, match="begin to change at frame 6, but have to arrive by frame 4 of 4. Let start"):
        line_up(replace(LINEAR, start=6), 0)


@pytest.mark.parametrize("method", ["shift batches", "alternate batches"])
def test_one_picture_has_none_to_change_to(method: Method) -> None:
    with pytest.raises(ValueError, match=f"'{method}' goes from picture to picture, but there is one alone"):
        line_up(replace(LINEAR, method=method), 1)
