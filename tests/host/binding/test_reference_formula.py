"""Reference Style in eleven families equals its formula, written out in plain torch around the host's own model."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from semblance.attention.engine.call import Rotary
from semblance.attention.engine.scope import ImageMask
from semblance.attention.methods.reference_style import Frequencies, Statistics
from semblance.host.binding.transformer import transformer_of
from semblance.tests.support.reference_page import Page, anatomy, by_the_page
from semblance.tests.support.reference_styles import picture, recorded, sampled, styled
from semblance.tests.support.speeds import TRANSFORMER_NAMES, slow, slow_but
from semblance.tests.support.studio import relative_error
from semblance.tests.support.transformers import TRANSFORMERS, TransformerFamily

CONSTANT = Frequencies(structure=(0.4, 0.4), detail=(1.3, 1.3))


@cache
def tiny(family: TransformerFamily) -> ModelPatcher:
    return family.model()


def area(height: int, width: int) -> Tensor:
    """Weights between 0 and 1, one for each token, in the 255 steps of a mask."""
    return (torch.rand(height, width, generator=torch.Generator().manual_seed(8)) * 255).round() / 255


def in_pixels(weights: Tensor) -> Tensor:
    """Painted over a picture of 64 pixels to a side."""
    return weights.repeat_interleave(64 // len(weights), dim=0).repeat_interleave(64 // len(weights), dim=1)


@pytest.mark.parametrize(
    ("statistics", "strength", "weight", "masked"),
    [
        pytest.param(Statistics(), 1.0, 1, False, id="whole"),
        pytest.param(Statistics(1.0, 0.6), 0.5, 3, False, id="statistics-half-counted"),
        slow(Statistics(0.7, 1.0), 1.0, 1, False),
        slow(Statistics(), 0.5, 1, False),
        slow(Statistics(1.0, 0.0), 1.0, 2, True),
        slow(Statistics(1.0, 1.0), 0.5, 1, True),
    ],
)
def test_the_first_call_is_the_formulas(
    family: TransformerFamily, statistics: Statistics, strength: float, weight: int, masked: bool
) -> None:
    model, calls = recorded(tiny(family))
    side = 8 if family.name == "flux2" else 4
    weights = area(side, side) if masked else None
    settings = {"frequencies": CONSTANT, "statistics": statistics, "strength": strength, "weight": weight}
    mask = None if weights is None else ImageMask(in_pixels(weights)[None])
    sampled(family, styled(model, one := picture(family), mask=mask, **settings), steps=1)
    page = Page(0.4, 1.3, 2.5, statistics.queries_and_keys, statistics.values, strength, weight, weights)
    expected = by_the_page(family, tiny(family), calls[0], [one], page)
    assert len(calls) == 1 and len(calls[0].numbers) == 2
    assert relative_error(calls[0].output, expected) < 1e-5


@pytest.mark.parametrize("size", [(10, 6), slow(((7, 9),))])
@pytest.mark.parametrize("family", slow_but(TRANSFORMER_NAMES, ("z_image", "wan")), indirect=True)
def test_two_references_and_a_batch_are_the_formulas_too(family: TransformerFamily, size: tuple[int, int]) -> None:
    """At 10 by 6 and 7 by 9 Z-Image fills 15 and 20 tokens up to 32."""
    model, calls = recorded(tiny(family))
    pair = [picture(family, "a", size, seed=5), picture(family, "b", size, seed=6)]
    statistics = Statistics(0.5, 0.5)
    sampled(family, styled(model, *pair, frequencies=CONSTANT, statistics=statistics), size, steps=1, images=2)
    expected = by_the_page(family, tiny(family), calls[0], pair, Page(0.4, 1.3, 2.5, 0.5, 0.5))
    assert len(calls[0].x) == 4 and len(calls[0].numbers) == 2
    assert relative_error(calls[0].output, expected) < 1e-5


def test_a_text_mask_of_the_model_stays_on_its_own_keys() -> None:
    """Qwen-Image hides the padding of a prompt; a reference's keys are behind those that the mask is for."""
    family = TRANSFORMERS["qwen_image"]
    model, calls = recorded(tiny(family))
    hidden = {"attention_mask": torch.tensor([[1.0, 1, 1, 1, 0, 0, 0]])}
    texts = {"positive": family.conditioning(seed=1, **hidden), "negative": family.conditioning(seed=2, **hidden)}
    one = picture(family)
    sampled(family, styled(model, one, frequencies=CONSTANT, strength=0.5, weight=2), steps=1, **texts)
    expected = by_the_page(family, tiny(family), calls[0], [one], Page(0.4, 1.3, 2.5, strength=0.5, weight=2.0))
    assert relative_error(calls[0].output, expected) < 1e-5
    unhidden = sampled(family, tiny(family), steps=1)
    assert relative_error(sampled(family, tiny(family), steps=1, **texts), unhidden) > 1e-3


@pytest.mark.parametrize("family", slow_but(TRANSFORMER_NAMES, ("flux", "z_image", "anima")), indirect=True)
def test_white_everywhere_is_no_mask(family: TransformerFamily) -> None:
    """Text is left alone with a mask and without one."""
    settings = {"frequencies": CONSTANT, "statistics": Statistics(1.0, 1.0)}
    white = ImageMask(torch.ones(1, 16, 16))
    masked, bare = (
        sampled(family, styled(tiny(family), picture(family), mask=mask, **settings), steps=1) for mask in (white, None)
    )
    assert relative_error(masked, bare) < 1e-5


def test_the_axes_of_a_family_are_those_its_own_embedding_turns(family: TransformerFamily) -> None:
    """One step along rows or columns turns the pairs that have factors of their own there, the first the most."""
    rotary = transformer_of(tiny(family).model).rotary
    if rotary is None:
        assert family.name == "sd35"
        return
    body, module = anatomy(family.name), tiny(family).model.diffusion_model
    assert rotary == Rotary(body.axes, "halves" if body.halves else "neighbours", rotary.base)
    for axis in range(1, 3):
        turned = angles(module, axis)
        begin = sum(body.axes[:axis]) // 2
        own = turned[begin : begin + body.axes[axis] // 2]
        others = torch.cat([turned[:begin], turned[begin + len(own) :]])
        assert (own > 1e-6).all() and (own.diff() < 0).all() and not others.any()


def angles(module: Any, axis: int) -> Tensor:
    """By how much each pair of a head is turned by one step along an axis."""
    embedder = getattr(module, "pe_embedder", getattr(module, "rope_embedder", None))
    if embedder is None:  # Anima's positions are those of a grid
        grid = module.pos_embedder(torch.zeros(1, 1, 2, 2, 1), fps=None, device=torch.device("cpu"))
        table = grid.reshape(2, 2, -1, 2, 2)[(1, 0) if axis == 1 else (0, 1)]
    else:
        step = torch.zeros(1, 1, len(embedder.axes_dim))
        step[..., axis] = 1
        table = embedder(step).reshape(-1, 2, 2)
    return torch.atan2(table[:, 1, 0], table[:, 0, 0]).abs()
