"""The benchmarks count and foretell what a real run shows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from semblance.attention.engine.scope import ImageMask
from semblance.attention.families import CONSISTORY, SDXL
from semblance.attention.methods.consistory.settings import MaskDropout, Sharing
from semblance.attention.subjects.user_masks import UserMasks
from semblance.bench import consistory
from semblance.bench.consistory import STEPS, modes, most_kept, on_sdxl, recorded_bytes, rows_of_calls, sample
from semblance.host.binding.model import add_patch
from semblance.host.subjects.subject import record
from semblance.tests.support.studio import wrap

IMAGES = 2


@pytest.fixture(scope="module")
def shallow() -> Any:
    return consistory.shallow_stand_in()


@pytest.mark.parametrize("mode", modes(IMAGES))
def test_calls_counted_without_computing_are_those_of_a_real_run(shallow: Any, mode: str) -> None:
    rows: list[int] = []

    def count(executor: Any, x: Tensor, *rest: Any, **named: Any) -> Tensor:
        rows.append(len(x))
        return executor(x, *rest, **named)

    story = add_patch(shallow, modes(IMAGES)[mode])
    sample(wrap(story, WrappersMP.DIFFUSION_MODEL, count), IMAGES, side=8)
    assert rows == rows_of_calls(story, IMAGES, consistory.TIMED_STEPS)


def test_official_calls_are_the_authors_without_a_rehearsal_of_the_first_step_and_rows_grow_with_images(
    shallow: Any,
) -> None:
    for images in (IMAGES, 2 * IMAGES):
        rows = rows_of_calls(add_patch(shallow, modes(images)["official"]), images)
        assert rows == [2 * images] * (2 * (STEPS + 5))  # theirs: STEPS + 6, of which the first step's shares nothing


@pytest.mark.slow
def test_queries_kept_are_foretold_by_the_widths_of_sdxl() -> None:
    kept = on_sdxl(most_kept(consistory.stand_in(), modes(IMAGES)["official"]))
    coarse, fine = 30 * 32 * 32 * 1280, 6 * 64 * 64 * 640
    assert kept["vanilla queries"] == 2 * IMAGES * (coarse + fine) * 2
    assert all(kept[part] > 0 for part in consistory.PARTS.values())


@pytest.mark.parametrize("injection", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_size_foretold_for_a_recording_is_that_of_a_real_one(injection: bool) -> None:
    """Of a subject that covers all of the picture, none of it dropped, so that no mask has to be guessed."""
    everywhere = UserMasks(ImageMask(torch.ones(1, 128, 128)))
    story = modes(2)["official" if injection else "sharing alone"]
    story = replace(story, sharing=Sharing(dropout=MaskDropout(0.0)), masks=everywhere)
    model = add_patch(consistory.stand_in(), story)
    _, subject = record(model, lambda recording: sample(recording, 2))
    measures = {"side": consistory.SIDE, "wider": 1, "steps": consistory.TIMED_STEPS, "number_bytes": 4}
    assert subject.anchors == 2 and story.blocks == SDXL.choice(CONSISTORY)
    assert subject.bytes == 2 * recorded_bytes(1.0, 0.0, injection, **measures)
