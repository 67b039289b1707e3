"""Maps of one sampling make the masks of its steps, of the last of them too, wherever that was."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from semblance.attention.engine.bank import FeatureBank
from semblance.attention.engine.call import AttentionCall, AttentionSite
from semblance.attention.engine.layout import BatchLayout, Chunk
from semblance.attention.engine.moment import Moment
from semblance.attention.subjects.maps import REMEMBERED_STEPS, SubjectMaps
from semblance.attention.subjects.words import SubjectWords

WORDS = SubjectWords(("a fox",), ("a fox",), (((1,),),), 4)
LAYOUT = BatchLayout((Chunk("positive"),), 1, (4, 4))


def maps_of(steps: int, first: int = 0) -> SubjectMaps:
    """Those of a sampling that saw some of its steps."""
    maps = SubjectMaps(WORDS, FeatureBank(), 0)
    for step in range(first, steps):
        noise = torch.Generator().manual_seed(step)
        query, key = (torch.randn(1, tokens, 8, generator=noise) for tokens in (16, 4))
        moment = Moment(1.0, step, 100, step / 100, lambda progress: 0.0)
        maps.record(AttentionCall(AttentionSite("cross", "output", 0), LAYOUT, moment, 4, 4, 2, query, key, key))
    return maps


def mask_of(maps: SubjectMaps, step: int) -> Tensor:
    found = maps.mask(step, (4, 4))
    assert found is not None
    return found


def test_a_mask_is_made_of_the_last_steps_before() -> None:
    last = REMEMBERED_STEPS + 9
    whole, before, late = maps_of(last), maps_of(9), maps_of(last, first=9)
    assert torch.equal(mask_of(whole, 9), mask_of(before, 9))
    assert torch.equal(mask_of(whole, last), mask_of(late, last))
    assert not torch.equal(mask_of(whole, 9), mask_of(whole, last))


@pytest.mark.parametrize("steps", [1, 30])
def test_a_sampling_that_ended_early_is_masked_by_its_last_steps(steps: int) -> None:
    """Of a fast story over 80 steps the first sampling ends some 21 before the last."""
    maps = maps_of(steps)
    assert torch.equal(mask_of(maps, 100), mask_of(maps, steps))


def test_before_the_first_step_there_is_no_mask() -> None:
    assert maps_of(3).mask(0, (4, 4)) is None and maps_of(0).mask(5, (4, 4)) is None
