"""Pictures are found in their scores by what they show, and picked by number or by a rule."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import pytest
import torch
from comfy_execution.graph_utils import ExecutionBlocker
from torch import Tensor

from semblance.host.evaluation import picking
from semblance.host.evaluation.contact_sheet import draw_sheet
from semblance.host.evaluation.picking import PickRule, pick_images, pick_latents, rows_of, select
from semblance.metrics.scores import Measure, Scores, fingerprint
from semblance.tests.support.graphs import picture

TEXT, STYLE = (0.30, 0.10, 0.25, 0.20, 0.28), (0.1, 0.9, 0.6, 0.8, 0.2)
BEST = PickRule(2, "text")


@pytest.fixture
def images() -> Tensor:
    return picture(3, 24, 24, images=5)


@pytest.fixture
def scores(images: Tensor) -> Scores:
    measures = (Measure("text", TEXT, True), Measure("style", STYLE, True))
    prompts = tuple(f"prompt {row}" for row in range(5))
    return Scores(prompts, measures, "a test", tuple(map(fingerprint, images)))


def test_numbers_are_places_of_the_pictures_as_they_come_in(images: Tensor, scores: Scores) -> None:
    picks = pick_images(images.flip(0), scores, [4, 1], BEST)
    assert picks.rows == (0, 3)
    assert torch.equal(picks.images, images[[0, 3]])
    assert picks.scores.rows == ("prompt 0", "prompt 3") and picks.scores["style"].values == (0.1, 0.8)
    assert picks.scores.pictures == (fingerprint(images[0]), fingerprint(images[3]))


def test_small_numbers_on_the_sheet_differ_as_the_scores_do(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """CFSD in the form of the paper is about 1e-5."""
    written: list[list[str]] = []

    def draw(shown: Tensor, captions: Sequence[Sequence[str]], picked: Collection[int]) -> Any:
        written.extend(map(list, captions))
        return draw_sheet(shown, captions, picked)

    monkeypatch.setattr(picking, "draw_sheet", draw)
    measures = (Measure("CFSD", (1.5e-5, 3e-5, 2e-5, 2.5e-5, 1e-5), False), Measure("text", TEXT, True))
    pick_images(images, Scores(tuple("abcde"), measures, "a test", tuple(map(fingerprint, images))), [], BEST)
    assert written[0] == ["CFSD 0.0000150", "text 0.300"] and written[1] == ["CFSD 0.0000300", "text 0.100"]


def test_without_numbers_the_best_by_the_rule_are_taken_best_first(images: Tensor, scores: Scores) -> None:
    order = [3, 1, 0, 2, 4]
    assert pick_images(images[order], scores, [], BEST).rows == (0, 4)
    floored = PickRule(2, "text", {"style": 0.5})
    assert pick_images(images[order], scores, [], floored).rows == (2, 3)
    assert pick_images(images, scores, [], PickRule(1, "style")).rows == (1,)


def test_some_of_the_scored_pictures_are_enough(images: Tensor, scores: Scores) -> None:
    picks = pick_images(images[[4, 1]], scores, [], PickRule(9, "text"))
    assert picks.places == (0, 1) and picks.rows == (4, 1)


def test_equal_pictures_take_their_rows_in_turn(images: Tensor, scores: Scores) -> None:
    """The same picture may have been scored by two prompts."""
    twice = select(scores, [0, 1, 0])
    assert rows_of(images[[0, 0, 1]], twice) == [0, 2, 1]
    assert rows_of(images[[0, 0, 0]], twice) == [0, 2, 2]


def test_scores_are_those_of_8_bits(images: Tensor, scores: Scores) -> None:
    assert rows_of(images + 1e-4, scores) == [0, 1, 2, 3, 4]


def test_latents_follow_their_rows_and_keep_the_noise_of_their_places() -> None:
    samples = torch.arange(5.0)[:, None, None, None].expand(5, 4, 2, 2)
    picked = pick_latents({"samples": samples, "downscale_ratio_spacial": 8}, [3, 0], 5)
    assert picked["samples"][:, 0, 0, 0].tolist() == [3, 0]
    assert picked["batch_index"] == [3, 0] and picked["downscale_ratio_spacial"] == 8
    again = pick_latents({"samples": samples[:2], "batch_index": [7, 9]}, [1], 2)
    assert again["batch_index"] == [9]


@pytest.mark.parametrize(("masks", "expected"), [(1, [0.0]), (2, [1.0, 0.0]), (5, [3.0, 0.0])])
def test_noise_masks_stay_with_their_latents(masks: int, expected: list[float]) -> None:
    """Fewer masks than latents repeat in turn, as in ComfyUI."""
    mask = torch.arange(float(masks))[:, None, None, None].expand(masks, 1, 2, 2)
    picked = pick_latents({"samples": torch.zeros(5, 4, 2, 2), "noise_mask": mask}, [3, 0], 5)
    assert picked["noise_mask"][:, 0, 0, 0].tolist() == expected


def test_nothing_that_came_in_is_changed(images: Tensor, scores: Scores) -> None:
    before = images.clone()
    latents: dict[str, Any] = {"samples": torch.zeros(5, 4, 2, 2)}
    picks = pick_images(images, scores, [1], BEST)
    pick_latents(latents, picks.rows, 5)
    assert torch.equal(images, before) and list(latents) == ["samples"]


def test_latents_that_are_not_connected_are_named_where_they_are_wanted() -> None:
    blocked = pick_latents(None, [0], 5)
    assert isinstance(blocked, ExecutionBlocker) and "Connect the LATENT" in str(blocked.message)
