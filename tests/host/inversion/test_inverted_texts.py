"""What the text and the model of an inversion may not be, whichever way the picture is inverted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from node_helpers import conditioning_set_values

import nodes as host_nodes
from semblance.attention.engine.scope import Scope
from semblance.attention.functional.inversion import MIDPOINT
from semblance.attention.methods.styleid.joint import JointStyleID
from semblance.host.binding.model import add_patch, map_transformer
from semblance.host.conditioning import Conditioning, Text
from semblance.host.inversion.edit_friendly import draw_noises, invert_edit_friendly
from semblance.host.inversion.runs import Inversion
from semblance.host.inversion.solver import invert
from semblance.tests.support.studio import Studio, record_calls
from semblance.tests.support.transformers import TRANSFORMERS

FLUX = TRANSFORMERS["flux"]
Way = Callable[[Any, Any], Inversion]
STEPS = 3


def picture(channels: int) -> torch.Tensor:
    return torch.randn(1, channels, 8, 8, generator=torch.Generator().manual_seed(5))


def by_ddim(model: Any, positive: Conditioning) -> Inversion:
    return invert(model, picture(4), STEPS, "ddim", Text(positive, positive))


def edit_friendly(model: Any, positive: Conditioning) -> Inversion:
    noises = draw_noises(picture(4), STEPS, 0)
    return invert_edit_friendly(model, picture(4), STEPS, Text(positive, positive), noises)


def by_midpoint(model: Any, positive: Conditioning) -> Inversion:
    return invert(model, picture(16), STEPS, MIDPOINT, Text(positive, positive))


def masked(positive: Conditioning) -> Conditioning:
    return host_nodes.ConditioningSetMask().append(positive, torch.ones(1, 64, 64), "default", 1.0)[0]


def timed(positive: Conditioning, start: float, end: float) -> Conditioning:
    return host_nodes.ConditioningSetTimestepRange().set_range(positive, start, end)[0]


@pytest.mark.parametrize("way", [by_ddim, edit_friendly, by_midpoint])
def test_a_text_for_a_part_of_the_picture_or_of_the_steps_is_refused(sd15: Studio, way: Way) -> None:
    """At the other steps the model answered nothing: a picture came back with all of its error, and no word of it."""
    plain, text = (FLUX.model(), FLUX.conditioning()) if way is by_midpoint else (sd15.model, sd15.positive)
    model, calls = record_calls(plain)
    with pytest.raises(ValueError, match="one prompt for the whole picture.*areas and masks"):
        way(model, masked(text))
    for start, end in ((0.0, 0.5), (0.2, 1.0)):
        with pytest.raises(ValueError, match="holds for a part of the steps.*Remove ConditioningSetTimestepRange"):
            way(model, timed(text, start, end))
    with pytest.raises(ValueError, match="holds for a part of the steps"):
        way(model, conditioning_set_values(text, {"timestep_start": 0.7}))
    assert calls == []
    whole, same = (way(plain, each).trajectory.latents for each in (timed(text, 0.0, 1.0), text))
    assert torch.equal(whole, same), "a range of all steps is none"


def test_a_model_that_a_method_acts_on_already_is_refused() -> None:
    """Behind StyleID a picture was inverted with the style on it, and the report praised the way back."""
    flux, text = FLUX.model(), FLUX.conditioning()
    own = by_midpoint(flux, text).trajectory
    counted, calls = record_calls(flux)

    def carrying(strength: float) -> Any:
        return add_patch(counted, JointStyleID(own, own, Scope(map_transformer(flux).preset("all")), strength=strength))

    with pytest.raises(ValueError, match="to invert with carries StyleID already.*Connect the model from before"):
        by_midpoint(carrying(1.0), text)
    assert calls == []
    assert torch.equal(by_midpoint(carrying(0.0), text).trajectory.latents, own.latents)


def test_a_model_with_another_method_of_ours_is_refused_by_ddim_too(sd15: Studio) -> None:
    with pytest.raises(ValueError, match="to invert with carries InstantStyle already"):
        by_ddim(add_patch(sd15.model, sd15.instantstyle()), sd15.positive)
