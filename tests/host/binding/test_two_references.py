"""Two Reference Style nodes on a model: their strengths are independent, and neither hides the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from semblance.attention.engine.guests import ShownPicture
from semblance.attention.engine.scope import ImageMask, Scope
from semblance.attention.methods.reference_style import ReferenceStyle
from semblance.attention.methods.styleid.method import StyleID
from semblance.attention.references.shared_style import Statistics
from semblance.host.binding.model import add_patch
from semblance.tests.support.reference_styles import picture, sampled, styled
from semblance.tests.support.studio import Studio, relative_error, trajectory
from semblance.tests.support.transformers import TRANSFORMERS

Sampled = Callable[..., Tensor]
NEARLY = 0.9999


def on_flux(statistics: Statistics) -> Sampled:
    family = TRANSFORMERS["flux"]
    model = family.model()
    pictures = {name: picture(family, name, seed=seed) for name, seed in (("a", 5), ("b", 6))}

    def sample(**strengths: Any) -> Tensor:
        chained = model
        for name, settings in strengths.items():
            given = settings if isinstance(settings, dict) else {"strength": settings}
            chained = styled(chained, pictures[name], statistics=statistics, **given)
        return sampled(family, chained)

    return sample


def on_unet(studio: Studio, statistics: Statistics) -> Sampled:
    noise = torch.randn(4, 1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    pictures = {"a": ShownPicture("a", noise[0], noise[1]), "b": ShownPicture("b", noise[2], noise[3])}

    def sample(**strengths: Any) -> Tensor:
        chained = studio.model
        for name, settings in strengths.items():
            given = dict(settings) if isinstance(settings, dict) else {"strength": settings}
            scope = Scope(studio.everywhere().blocks, mask=given.pop("mask", None))
            chained = add_patch(chained, ReferenceStyle((pictures[name],), scope, statistics=statistics, **given))
        return studio.sample(chained, steps=2)

    return sample


@pytest.fixture(params=["flux", "sd15"])
def sample_with(request: pytest.FixtureRequest, sd15: Studio) -> Callable[[Statistics], Sampled]:
    return on_flux if request.param == "flux" else lambda statistics: on_unet(sd15, statistics)


@pytest.mark.parametrize("statistics", [Statistics(), Statistics(0.5, 0.3)], ids=["keys", "statistics"])
def test_two_strengths_just_below_one_are_those_at_one(
    sample_with: Callable[[Statistics], Sampled], statistics: Statistics
) -> None:
    sample = sample_with(statistics)
    both, alone = sample(a=1.0, b=1.0), sample(b=1.0)
    assert relative_error(alone, both) > 5e-3
    for strengths in ({"a": NEARLY, "b": NEARLY}, {"a": 1.0, "b": NEARLY}, {"a": NEARLY, "b": 1.0}):
        assert relative_error(sample(**strengths), both) < 1e-3, strengths


def test_two_strengths_do_not_depend_on_the_order_of_the_nodes(sample_with: Callable[[Statistics], Sampled]) -> None:
    sample = sample_with(Statistics())
    assert relative_error(sample(a=0.7, b=0.4), sample(b=0.4, a=0.7)) < 1e-5
    assert relative_error(sample(a=0.7, b=0.0), sample(a=0.7)) < 1e-6


def test_masks_that_cover_each_half_give_each_its_own_reference(
    sample_with: Callable[[Statistics], Sampled],
) -> None:
    sample = sample_with(Statistics())
    left = torch.zeros(1, 64, 64)
    left[:, :, :32] = 1
    halves = {"a": {"mask": ImageMask(left)}, "b": {"mask": ImageMask(1 - left)}}
    both = sample(**halves)
    assert relative_error(both, sample(b=halves["b"], a=halves["a"])) < 1e-5
    for name in halves:
        assert relative_error(both, sample(**{name: halves[name]})) > 5e-3


@pytest.mark.parametrize("first", ["reference", "styleid"])
def test_styleid_in_part_does_not_hide_a_reference(sd15: Studio, first: str) -> None:
    content, style = (trajectory(sd15, (8, 8), seed) for seed in (1, 2))
    noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    reference = ReferenceStyle((ShownPicture("a", noise[0], noise[1]),), sd15.everywhere())

    def sample(strength: float, beside: bool = True) -> Tensor:
        chain = [StyleID(content, style, sd15.everywhere(), strength=strength), *([reference] if beside else [])]
        model = sd15.model
        for patch in chain if first == "styleid" else reversed(chain):
            model = add_patch(model, patch)
        return sd15.sample(model, steps=1)

    whole = sample(1.0)
    assert relative_error(sample(NEARLY), whole) < 1e-2 < relative_error(sample(1.0, beside=False), whole)


@pytest.mark.parametrize("name", ["flux", "wan"])
def test_in_the_place_of_the_images_tokens_a_weight_changes_nothing(name: str) -> None:
    family = TRANSFORMERS[name]
    model = family.model()
    once, often = (sampled(family, styled(model, picture(family), instead=True, weight=weight)) for weight in (1, 4))
    assert torch.equal(once, often)
