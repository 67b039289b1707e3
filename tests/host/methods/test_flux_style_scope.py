"""When, where and of how many pictures an IP-Adapter acts on Flux, in numbers: equal to a page told the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from semblance.attention.engine.scope import CURVES, ScheduleWindow
from semblance.host.instantstyle.encoding import EncodedStyle
from semblance.tests.support.flux_blocks import WrittenAdapter, rewritten
from semblance.tests.support.flux_styles import (
    BOTH_FORMS,
    CHANGED,
    FLUX,
    SAME,
    adapter_of,
    sampled,
    style_of,
    styled,
    written,
)
from semblance.tests.support.studio import relative_error
from semblance.tests.tiny_models.flux_adapters import FluxForm

STEPS = 5
"""Of the simple schedule: each begins where a fifth of the noise schedule more has passed."""


def stepwise(style: EncodedStyle, weights: Sequence[float]) -> tuple[Any, list[float]]:
    """The page with a weight for each step, and the places of the noise schedule that its steps began at."""
    places: list[float] = []
    page = rewritten(FLUX, [written(style, weight_of_tokens=lambda _: torch.tensor(weights[len(places) - 1]))])
    shift = math.exp(page.model.model_sampling.shift)

    def step(apply_model: Callable[..., Tensor], given: dict[str, Any]) -> Tensor:
        sigma = float(given["timestep"][0])
        places.append(1 - 1 / (1 + shift * (1 / sigma - 1)))  # the shift of Flux's schedule, turned round
        return apply_model(given["input"], given["timestep"], **given["c"])

    page.set_model_unet_function_wrapper(step)
    return page, places


@BOTH_FORMS
@pytest.mark.parametrize(
    ("window", "weights"),
    [
        (ScheduleWindow(0.3, 0.7), (0, 0, 1, 1, 0)),
        (ScheduleWindow(0.1, 0.9, CURVES["fade out"]), (0, 0.875, 0.625, 0.375, 0.125)),
        (ScheduleWindow(0.0, 0.8, CURVES["rise and fall"]), (0, 0.5, 1, 0.5, 0)),
        (ScheduleWindow(0.1, 0.7, ((0.0, 2.0), (0.5, -1.0))), (0, 1.0, -1, -1, 0)),
    ],
    ids=["window", "fade out", "rise and fall", "points of one's own"],
)
def test_each_step_gets_the_weight_of_its_place_in_the_window(
    form: FluxForm, window: ScheduleWindow, weights: Sequence[float]
) -> None:
    style = style_of(adapter_of(form))
    page, places = stepwise(style, weights)
    expected = sampled(page, steps=STEPS)
    assert places == pytest.approx([step / STEPS for step in range(STEPS)], abs=1e-3)
    found = sampled(styled(FLUX.model(), style, window=window), steps=STEPS)
    assert relative_error(found, expected) <= 1e-4
    assert relative_error(found, sampled(styled(FLUX.model(), style), steps=STEPS)) > 10 * CHANGED


# Masks


def area(mask: Tensor, height: int, width: int) -> Callable[[int], Tensor]:
    """One mask on the tokens of a latent, by Pillow: what the picture's tokens get, and text the mean of it."""
    levels = Image.fromarray((mask * 255).round().to(torch.uint8).numpy())
    fitted = torch.tensor(list(levels.resize((8 * width, 8 * height), Image.Resampling.LANCZOS).getdata()))
    pixels = fitted.float().reshape(1, 1, 8 * height, 8 * width) / 255
    grid = -(-height // 2), -(-width // 2)  # tokens of two latent pixels a side, the last one filled up
    places = interpolate(pixels, size=grid, mode="bicubic", align_corners=False).flatten()

    def weight_of_tokens(tokens: int) -> Tensor:
        return torch.cat([places.mean().expand(tokens - len(places)), places])[:, None]

    return weight_of_tokens


@BOTH_FORMS
@pytest.mark.parametrize("size", [(9, 7), (6, 11)], ids=str)
@pytest.mark.parametrize("of_mask", [(37, 53), (3, 5)], ids=str)
def test_a_mask_of_any_size_lies_over_a_latent_of_any_size(
    form: FluxForm, size: tuple[int, int], of_mask: tuple[int, int]
) -> None:
    style = style_of(adapter_of(form))
    mask = torch.rand(of_mask, generator=torch.Generator().manual_seed(4))
    found = sampled(styled(FLUX.model(), style, mask=mask[None]), size=size)
    expected = sampled(rewritten(FLUX, [written(style, weight_of_tokens=area(mask, *size))]), size=size)
    assert relative_error(found, expected) <= 1e-4
    assert relative_error(found, sampled(styled(FLUX.model(), style), size=size)) > CHANGED


@BOTH_FORMS
@pytest.mark.parametrize("size", [(8, 8), (9, 7)], ids=str)
def test_each_image_of_a_batch_has_its_own_mask(form: FluxForm, size: tuple[int, int]) -> None:
    style = style_of(adapter_of(form))
    noise = torch.randn(3, 16, *size, generator=torch.Generator().manual_seed(5))
    masks = torch.rand(3, 37, 53, generator=torch.Generator().manual_seed(6))
    batch = sampled(styled(FLUX.model(), style, mask=masks), noise=noise, cfg=3.0)
    for image in range(3):
        own = slice(image, image + 1)
        alone = sampled(styled(FLUX.model(), style, mask=masks[own]), noise=noise[own], cfg=3.0)
        assert relative_error(batch[own], alone) <= 1e-5
        other = sampled(styled(FLUX.model(), style, mask=masks[own].roll(20, 2)), noise=noise[own], cfg=3.0)
        assert relative_error(batch[own], other) > CHANGED


# Several pictures


def weighted(style: EncodedStyle, *weights: float) -> EncodedStyle:
    return replace(style, reference=replace(style.reference, weights=weights))


def beside(style: EncodedStyle, *pictures: int) -> WrittenAdapter:
    """The page with the tokens of these pictures in a row, in one softmax."""
    page = written(style)
    with torch.no_grad():
        tokens = [style.adapter.patcher.model.tokens(style.reference.pictures[number]) for number in pictures]
    return replace(page, tokens=torch.cat(tokens, dim=1))


@BOTH_FORMS
def test_a_picture_of_twice_the_weight_counts_as_if_it_stood_there_twice(form: FluxForm) -> None:
    style = style_of(adapter_of(form), pictures=2)
    found = sampled(styled(FLUX.model(), weighted(style, 2.0, 1.0)))
    assert relative_error(found, sampled(rewritten(FLUX, [beside(style, 0, 0, 1)]))) <= SAME
    alike = sampled(styled(FLUX.model(), style))
    assert relative_error(alike, sampled(rewritten(FLUX, [beside(style, 0, 1)]))) <= SAME
    assert relative_error(found, alike) > CHANGED


@BOTH_FORMS
def test_with_a_mask_each_the_weight_of_a_picture_is_its_strength_there(form: FluxForm) -> None:
    style = style_of(adapter_of(form), pictures=2)
    masks = torch.rand(2, 37, 53, generator=torch.Generator().manual_seed(6))
    found = sampled(styled(FLUX.model(), weighted(style, 0.5, 2.0), mask=masks))
    pages = [
        replace(beside(style, number), scale=weight, weight_of_tokens=area(masks[number], 8, 8))
        for number, weight in enumerate((0.5, 2.0))
    ]
    assert relative_error(found, sampled(rewritten(FLUX, pages))) <= 1e-4
