"""On UNets Reference Style is StyleAligned (arXiv:2312.02133) and Visual Style Prompting (arXiv:2402.12974).

Both are written here from their authors' code, as processors of a batch in which the reference is the last row of each
half, and run by the host's own UNet.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from semblance.attention.engine.guests import ShownPicture
from semblance.attention.engine.scope import Scope
from semblance.attention.methods.reference_style import Frequencies, ReferenceStyle, Statistics
from semblance.host.binding.model import add_patch
from semblance.host.binding.unet_pictures import UnetPictures
from semblance.tests.support.speeds import FAMILIES, slow, slow_but
from semblance.tests.support.studio import Studio, record_calls, relative_error
from semblance.tests.tiny_models import make_unet

AS_THEY_ARE = Frequencies(structure=(1.0, 1.0), detail=(1.0, 1.0))


def expand_first(feature: Tensor, images: int) -> Tensor:
    """Of each half of the batch the reference's row, for all rows of that half."""
    halves = feature.unflatten(0, (-1, images + 1))
    return halves[:, -1:].expand_as(halves).flatten(0, 1)


def adain(feature: Tensor, images: int) -> Tensor:
    mean, std = feature.mean(dim=-2, keepdim=True), (feature.var(dim=-2, keepdim=True) + 1e-5).sqrt()
    return (feature - mean) / std * expand_first(std, images) + expand_first(mean, images)


def style_aligned(query: Tensor, key: Tensor, value: Tensor, images: int) -> tuple[Tensor, Tensor, Tensor]:
    """`shared_self_attention` with `adain_queries` and `adain_keys`, as they are by default."""
    query, key = adain(query, images), adain(key, images)
    key = torch.cat([key, expand_first(key, images)], dim=-2)
    value = torch.cat([value, expand_first(value, images)], dim=-2)
    return query, key, value


def style_aligned_to_a_real_picture(
    query: Tensor, key: Tensor, value: Tensor, images: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same with `shared_score_shift` log 2, as the demo for real pictures has it."""
    query, key, value = style_aligned(query, key, value, images)
    shift = torch.zeros(key.shape[-2])
    shift[query.shape[-2] :] = math.log(2)
    return query, key, value, shift


def style_prompted(query: Tensor, key: Tensor, value: Tensor, images: int) -> tuple[Tensor, Tensor, Tensor]:
    """The reference's keys and values in place of every row's own."""
    return query, expand_first(key, images), expand_first(value, images)


def by_the_authors(
    model: ModelPatcher, call: Mapping[str, Any], one: ShownPicture, images: int, where: set[str], processor: Any
) -> Tensor:
    """What the host answers for the sampler's rows if the reference is one more row of each half."""
    sigma = torch.tensor([call["sigma"]])
    row = model.model.model_sampling.noise_scaling(sigma, one.noise, one.clean)

    def seated(value: Tensor, more: Tensor | None = None) -> Tensor:
        halves = value.unflatten(0, (-1, images))
        last = halves[:, :1] if more is None else more.expand(len(halves), *more.shape)
        return torch.cat([halves, last], dim=1).flatten(0, 1)

    def attend(func: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, *rest: Any, **named: Any) -> Tensor:
        part, number = named["transformer_options"]["block"]
        if q.shape != k.shape or f"{part}.{number}" not in where:
            return func(q, k, v, heads, *rest, **named)
        split = (one.unflatten(2, (heads, -1)).transpose(1, 2) for one in (q, k, v))
        q, k, v, *shift = processor(*split, images)
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + (shift[0] if shift else 0.0)).softmax(dim=-1)
        return (weights @ v).transpose(1, 2).flatten(2)

    x = seated(call["x"], row)
    named = {name: seated(value) if isinstance(value, Tensor) else value for name, value in call["more"].items()}
    options = {"optimized_attention_override": attend, "cond_or_uncond": call["numbers"]}
    with torch.inference_mode():
        t = sigma.expand(len(x))
        answer = model.model.apply_model(
            x, t, c_crossattn=seated(call["context"]), transformer_options=options, **named
        )
    return answer.unflatten(0, (-1, images + 1))[:, :-1].flatten(0, 1)


def picture(seed: int = 5, size: tuple[int, int] = (8, 8)) -> ShownPicture:
    generator = torch.Generator().manual_seed(seed)
    clean, noise = (torch.randn(1, 4, *size, generator=generator) for _ in range(2))
    return ShownPicture("a", 0.8 * clean, noise)


@pytest.fixture(params=slow_but(FAMILIES, ("sd15",)))
def fresh(request: pytest.FixtureRequest, studio_of: Callable[..., Studio]) -> tuple[Studio, ModelPatcher]:
    """A family with random weights that no other test has."""
    return studio_of(request.param), make_unet(request.param, seed=21)


@pytest.mark.parametrize("size", [(16, 12), slow(((18, 26),))])
def test_all_self_attentions_with_statistics_are_style_aligned(
    fresh: tuple[Studio, ModelPatcher], size: tuple[int, int]
) -> None:
    studio, model = fresh
    one, scope = picture(size=size), studio.everywhere()
    method = ReferenceStyle((one,), scope, frequencies=AS_THEY_ARE, statistics=Statistics(1.0, 0.0))
    recording, calls = record_calls(model)
    studio.sample(add_patch(recording, method), size=size, steps=2)
    plain = studio.sample(model, size=size, steps=1)
    for call in calls:
        expected = by_the_authors(model, call, one, 2, set(scope.blocks), style_aligned)
        assert relative_error(call["output"], expected) < 1e-5
    assert relative_error(studio.sample(add_patch(model, method), size=size, steps=1), plain) > 1e-3


def test_a_weight_of_two_is_the_shift_of_style_aligneds_demo_for_real_pictures(
    fresh: tuple[Studio, ModelPatcher],
) -> None:
    studio, model = fresh
    one, scope = picture(size=(16, 12)), studio.everywhere()
    method = ReferenceStyle((one,), scope, frequencies=AS_THEY_ARE, statistics=Statistics(1.0, 0.0), weight=2)
    recording, calls = record_calls(model)
    studio.sample(add_patch(recording, method), size=(16, 12), steps=2)
    for call in calls:
        expected = by_the_authors(model, call, one, 2, set(scope.blocks), style_aligned_to_a_real_picture)
        assert relative_error(call["output"], expected) < 1e-5
        unshifted = by_the_authors(model, call, one, 2, set(scope.blocks), style_aligned)
        assert relative_error(expected, unshifted) > 1e-4


def test_the_references_tokens_in_place_of_the_images_are_visual_style_prompting(
    fresh: tuple[Studio, ModelPatcher],
) -> None:
    studio, model = fresh
    late = {block for block in studio.everywhere().blocks if block in {"output.3", "output.4", "output.5"}}
    one, scope = picture(), Scope(dict.fromkeys(late, 1.0))
    recording, calls = record_calls(model)
    studio.sample(add_patch(recording, ReferenceStyle((one,), scope, frequencies=AS_THEY_ARE, instead=True)), steps=2)
    for call in calls:
        expected = by_the_authors(model, call, one, 2, late, style_prompted)
        assert relative_error(call["output"], expected) < 1e-5
        bare = by_the_authors(model, call, one, 2, set(), style_prompted)
        assert relative_error(expected, bare) > 1e-4


def test_a_single_token_has_no_deviation_and_is_moved_all_the_same(sd15: Studio) -> None:
    """The middle block of a picture of 64 pixels is one token, whose variance over tokens is not a number."""
    method = ReferenceStyle((picture(),), Scope({"middle.0": 1.0}), statistics=Statistics(1.0, 1.0))
    moved = sd15.sample(add_patch(sd15.model, method))
    assert torch.isfinite(moved).all() and relative_error(moved, sd15.plain) > 1e-5


def test_a_reference_of_another_size_or_prompt_goes_through_the_unet_apart_to_the_same_end(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same size it rides as a row; kept from riding, it gives the same."""
    method = ReferenceStyle((picture(),), studio.everywhere(), statistics=Statistics(0.5, 0.5))
    riding = studio.sample(add_patch(studio.model, method))
    find = UnetPictures.of
    with monkeypatch.context() as patched:
        patched.setattr(UnetPictures, "of", lambda *given: UnetPictures((), find(*given).beside))
        assert relative_error(studio.sample(add_patch(studio.model, method)), riding) < 1e-5
    other = ReferenceStyle((picture(size=(12, 6)),), studio.everywhere(), statistics=Statistics(0.5, 0.5))
    apart = studio.sample(add_patch(studio.model, other))
    assert torch.isfinite(apart).all() and relative_error(apart, studio.plain) > 1e-3
