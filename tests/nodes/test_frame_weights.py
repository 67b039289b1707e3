"""Weights over Frames: lists of weights and the pictures beside them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comfy_execution.graph_utils import ExecutionBlocker

from semblance.nodes.frame_weights import WeightsOverFrames
from semblance.tests.support.graphs import picture, run

WIDGETS: dict[str, Any] = {
    "weights": "1.0, 0.0",
    "timing": "linear",
    "frames": 3,
    "start_frame": 0,
    "end_frame": 9999,
    "add_starting_frames": 0,
    "add_ending_frames": 0,
    "method": "full batch",
}


def frames(**settings: Any) -> Any:
    """The outputs of the node."""
    return run(WeightsOverFrames, **(WIDGETS | settings))


def test_weights_come_as_lists_of_numbers_with_their_count() -> None:
    weights, inverted, total, *_ = frames()
    assert (weights, inverted, total) == ([1.0, 0.5, 0.0], [0.0, 0.5, 1.0], 3)
    assert all(type(weight) is float for weight in weights)


@pytest.mark.parametrize("written", ["0.1\n0.2\n0.7", "0.1,0.2,,0.7,", " 0.1, 0.2\n 0.7"])
def test_custom_weights_stand_as_they_are_written(written: str) -> None:
    assert frames(weights=written, timing="custom")[0] == [0.1, 0.2, 0.7]


def test_pictures_are_lined_up_with_the_weights() -> None:
    batch = picture(1, images=3)
    weights, _, total, first, second, _ = frames(image=batch, method="shift batches", add_ending_frames=1)
    assert total == len(weights) == 7
    assert torch.equal(first, batch[[0, 0, 0, 1, 1, 1, 2]]) and torch.equal(second, batch[[1, 1, 1, 2, 2, 2, 2]])


def test_settings_of_another_node_take_the_place_of_its_own() -> None:
    first = frames(weights="0.2, 0.8", timing="ease_in", frames=5)
    again = frames(weights_strategy=first[5])
    assert again[0] == first[0] and again[5] == first[5]


def test_pictures_that_are_not_there_stop_the_node_that_asks_for_them() -> None:
    *_, first, second, _ = frames()
    assert isinstance(first, ExecutionBlocker) and isinstance(second, ExecutionBlocker)
    assert first.message == "There are no pictures. Connect a batch to 'image' of Weights over Frames."
    *_, second, _ = frames(image=picture(1))
    assert second.message.startswith("'full batch' shows one picture at a time, so there is no 'image_2'.")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"weights": "1.0; 0.0"}, "'1.0; 0.0' is not a list of weights"),
        ({"weights": "nan"}, "'nan' is not a list of weights"),
        ({"start_frame": 5}, "The weights begin to change at frame 5, but have to arrive by frame 3 of 3"),
    ],
)
def test_what_makes_no_weights_is_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        frames(**change)
