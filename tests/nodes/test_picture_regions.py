"""Regions: a picture, words and a mask in one, in the order in which they were joined."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comfy_execution.graph_utils import ExecutionBlocker

from semblance.nodes.picture_regions import CombineRegions, Region
from semblance.tests.support.graphs import picture, run
from semblance.tests.tiny_models import make_conditioning

LEFT = torch.zeros(1, 64, 64).index_fill(2, torch.arange(32), 1.0)


def region(seed: int = 1, **settings: Any) -> Any:
    """The outputs of Region."""
    own = {"image_weight": 0.8, "prompt_weight": 1.5, "weight_type": "linear", "start_at": 0.0, "end_at": 1.0}
    return run(Region, **{"image": picture(seed), **own, **settings})


def test_the_prompts_of_a_region_are_masked_as_the_core_node_masks_them() -> None:
    import nodes

    positive, negative = make_conditioning(seed=1), make_conditioning(seed=2)
    _, *found = region(mask=LEFT, positive=positive, negative=negative)
    for prompts, given in zip(found, (positive, negative), strict=True):
        (expected,) = nodes.ConditioningSetMask().append(given, LEFT, "default", 1.5)
        assert [entry[1] for entry in prompts] == [entry[1] for entry in expected]
        assert all(torch.equal(own[0], other[0]) for own, other in zip(prompts, expected, strict=True))
        assert "mask" not in given[0][1]


def test_without_a_mask_the_prompts_stay_as_they_are() -> None:
    positive = make_conditioning()
    assert region(positive=positive)[1] is positive


def test_an_output_without_a_prompt_stops_the_node_that_asks_for_it() -> None:
    for side, name in zip(region(mask=LEFT)[1:], ("positive", "negative"), strict=True):
        assert isinstance(side, ExecutionBlocker)
        assert side.message == f"Nothing is connected to '{name}' of Region, so it gives no '{name}'. " + (
            "Connect a prompt there."
        )


def test_regions_are_joined_in_their_order_and_joins_can_be_joined() -> None:
    one, two, three, four = (region(seed)[0] for seed in range(4))
    pair = run(CombineRegions, one, two)[0]
    joined = run(CombineRegions, pair, three, params_4=four)[0]
    assert joined == (*one, *two, *three, *four)


def test_a_region_keeps_its_settings_and_of_a_list_of_weights_the_first() -> None:
    ((found,), *_) = region(image_weight=[0.3, 0.9], weight_type="style transfer", start_at=0.2, mask=LEFT)
    assert (found.weight, found.kind, found.start, found.end) == (0.3, "style transfer", 0.2, 1.0)
    assert torch.equal(found.mask, LEFT)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"image": torch.full((1, 56, 56, 3), torch.nan)}, "The image holds pixels that are not numbers"),
        ({"image": torch.ones(1, 56, 4, 3)}, "The image is 4x56 pixels, too small"),
        ({"mask": torch.zeros(1, 8, 8)}, "The mask is empty"),
        ({"mask": torch.full((1, 8, 8), torch.nan)}, "The mask holds values that are not numbers"),
        ({"mask": torch.ones(8, 8)}, "The mask has shape"),
        ({"image_weight": float("nan")}, "A weight is nan"),
        ({"image_weight": []}, "The list of weights is empty"),
        ({"prompt_weight": float("nan")}, "The weight of the prompts is nan"),
        ({"start_at": float("nan")}, "Start is nan and end 1; both must lie between 0 and 1"),
    ],
)
def test_what_makes_no_region_is_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        region(**change)
