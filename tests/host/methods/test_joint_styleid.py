"""StyleID on transformers: a page of plain torch in every family, and what must come out when nothing is changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from semblance.attention.engine.scope import ImageMask, Scope
from semblance.attention.functional.inversion import MIDPOINT
from semblance.attention.methods.styleid.joint import JointStyleID
from semblance.attention.references.trajectory import ReferenceTrajectory
from semblance.host.binding.model import add_patch, map_transformer
from semblance.host.conditioning import Text
from semblance.host.inversion.flow import flow_sampler
from semblance.host.inversion.runs import as_latent, falling_levels
from semblance.host.inversion.solver import invert
from semblance.host.latents import picture_latents
from semblance.tests.support.speeds import TRANSFORMER_NAMES, slow_but
from semblance.tests.support.studio import record_calls, relative_error
from semblance.tests.support.transformers import TRANSFORMERS, SeenCall, TransformerFamily, watched
from semblance.tests.tiny_models import sampler_custom

FAMILIES = slow_but(TRANSFORMER_NAMES, ("flux", "qwen_image", "z_image", "wan"))
FLUX = TRANSFORMERS["flux"]


def inverted(family: TransformerFamily, model: ModelPatcher, images: int = 2, steps: int = 3) -> ReferenceTrajectory:
    pictures = picture_latents(family.latent(images, 8, 12, seed=5)) * 2.7
    return invert(model, pictures, steps, MIDPOINT, Text(family.conditioning(), family.conditioning())).trajectory


def everywhere(model: ModelPatcher, **settings: Any) -> Scope:
    return Scope(map_transformer(model).preset("all"), **settings)


def sampled(
    family: TransformerFamily, model: ModelPatcher, start: ReferenceTrajectory, cfg: float = 1.0, **conds: Any
) -> Tensor:
    """By StyleID's own sampler from the noise of `start`, with the text of the inversion."""
    latent = {"samples": as_latent(model, start.latents[-1])}
    text = family.conditioning()
    given = (conds.get("positive", text), conds.get("negative", text))
    return sampler_custom(model, *given, latent, falling_levels(start), sampler=flow_sampler(), cfg=cfg)


def seen(model: ModelPatcher, family: TransformerFamily, state: Tensor, sigma: float) -> SeenCall:
    """The attentions of a call with a state alone."""
    watching, calls = watched(model)
    answer(watching, family, state, sigma)
    return calls[0]


def packed(part: Tensor) -> Tensor:
    """(rows, heads, tokens, head_dim) as (rows, tokens, heads * head_dim)."""
    return part.transpose(1, 2).flatten(2)


def page(content: SeenCall, style: SeenCall, span: Callable[[int], slice], gamma: float, temperature: float) -> Any:
    """StyleID's attention in plain torch, by the number of the attention in the call."""
    number = -1
    count = len(content.attentions)

    def attend(
        function: Any, query: Tensor, key: Tensor, value: Tensor, heads: int, *rest: Any, **named: Any
    ) -> Tensor:
        nonlocal number
        number = (number + 1) % count
        options = named["transformer_options"]
        if "block_index" not in options or span(query.shape[-2]) is None:
            return function(query, key, value, heads, *rest, **named)
        plain = function(query, key, value, heads, *rest, **named)
        there = span(query.shape[-2])
        of_content, of_style = content.attentions[number], style.attentions[number]
        unpacked = bool(named.get("skip_reshape"))

        def by_head(part: Tensor) -> Tensor:
            return part if unpacked else part.unflatten(2, (heads, -1)).transpose(1, 2)

        q, k, v = by_head(query).clone(), by_head(key).clone(), by_head(value).clone()
        q_content, k_style, v_style = by_head(of_content.query), by_head(of_style.key), by_head(of_style.value)
        mixed = gamma * q_content[:, :, there] + (1 - gamma) * q[:, :, there]
        k[:, :, there], v[:, :, there] = k_style[:, :, there], v_style[:, :, there]
        logits = temperature * mixed @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        made = packed(logits.softmax(-1) @ v)
        return torch.cat([plain[:, : there.start], made, plain[:, there.stop :]], dim=1)

    return attend


SPANS: dict[str, Callable[[int], Any]] = {
    "flux": lambda tokens: slice(7, 31) if tokens == 31 else None,
    "chroma": lambda tokens: slice(7, 31) if tokens == 31 else None,
    "qwen_image": lambda tokens: slice(7, 31) if tokens == 31 else None,
}
"""Seven tokens of text, then 24 of the picture."""


@pytest.mark.parametrize("name", SPANS)
def test_one_call_equals_a_page_of_plain_torch(name: str) -> None:
    family = TRANSFORMERS[name]
    model = family.model()
    pair = inverted(family, model)
    content, style = pair.select([0]), pair.select([1])
    sigma = pair.sigmas[2]
    of_content, of_style = (seen(model, family, t.at(sigma), sigma) for t in (content, style))
    start = content.at(sigma) + 0.3 * torch.randn(content.at(sigma).shape, generator=torch.Generator().manual_seed(8))
    by_hand = model.clone()
    override = page(of_content, of_style, SPANS[name], 0.75, 1.5)
    by_hand.model_options["transformer_options"]["optimized_attention_override"] = override
    expected = answer(by_hand, family, start, sigma)
    patched = add_patch(model, JointStyleID(content, style, everywhere(model)))
    made, plain = (answer(each, family, start, sigma) for each in (patched, model))
    print(name, relative_error(made, expected), relative_error(plain, expected))
    assert relative_error(made, expected) < 1e-5 and relative_error(plain, expected) > 1e-3


def answer(model: ModelPatcher, family: TransformerFamily, state: Tensor, sigma: float) -> Tensor:
    """What the model makes of a state in one call."""
    counted, calls = record_calls(model)
    text, latent = family.conditioning(), {"samples": as_latent(model, state)}
    sampler_custom(counted, text, text, latent, torch.tensor([sigma, sigma / 2]), sampler=flow_sampler())
    return calls[0]["output"][:1]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_contents_own_features_give_the_content_back(name: str) -> None:
    """With gamma 1, temperature 1 and the content as its own style, every attention sees what it saw anyway."""
    family = TRANSFORMERS[name]
    model = family.model()
    content = inverted(family, model, images=1, steps=12)
    patch = JointStyleID(content, content, everywhere(model), gamma=1.0, temperature=1.0)
    plain, made = (sampled(family, each, content) for each in (model, add_patch(model, patch)))
    missed = relative_error(plain, as_latent(model, content.latents[0]))
    print(name, missed, relative_error(made, plain))
    # The path between two points is a line there, and the model's own on the way back.
    assert relative_error(made, plain) < 2 * missed + 0.01


@pytest.mark.parametrize("name", FAMILIES)
def test_a_style_moves_the_picture_and_strength_zero_does_not(name: str) -> None:
    family = TRANSFORMERS[name]
    model = family.model()
    pair = inverted(family, model)
    content, style = pair.select([0]), pair.select([1])
    plain = sampled(family, model, content)
    made = sampled(family, add_patch(model, JointStyleID(content, style, everywhere(model))), content)
    assert relative_error(made, plain) > 1e-3 and torch.isfinite(made).all()
    none = add_patch(model, JointStyleID(content, style, everywhere(model), strength=0.0))
    assert torch.equal(sampled(family, none, content), plain)


def test_each_image_has_its_own_content_and_style() -> None:
    model = FLUX.model()
    four = inverted(FLUX, model, images=4)
    contents, styles = four.select([0, 1]), four.select([2, 3])
    both = sampled(FLUX, add_patch(model, JointStyleID(contents, styles, everywhere(model))), contents)
    for image in range(2):
        content, style = contents.select([image]), styles.select([image])
        one = sampled(FLUX, add_patch(model, JointStyleID(content, style, everywhere(model))), content)
        assert relative_error(both[image : image + 1], one) < 1e-4


def test_both_sides_of_guidance_are_styled_though_their_texts_are_of_two_lengths() -> None:
    model = FLUX.model()
    pair = inverted(FLUX, model)
    content, style = pair.select([0]), pair.select([1])
    longer = FLUX.conditioning(tokens=9, seed=2)  # never in one call with seven tokens
    counted, calls = record_calls(model)
    patched = add_patch(counted, JointStyleID(content, style, everywhere(model)))
    plain, made = (sampled(FLUX, each, content, cfg=3.0, negative=longer) for each in (model, patched))
    assert relative_error(made, plain) > 1e-3
    assert {tuple(call["numbers"]) for call in calls} == {(0,), (1,)}


def test_a_white_mask_is_the_whole_and_half_of_one_styles_half() -> None:
    model = FLUX.model()
    pair = inverted(FLUX, model)
    content, style = pair.select([0]), pair.select([1])

    def painted(**settings: Any) -> Tensor:
        scope = everywhere(model, mask=settings.pop("mask", None))
        return sampled(FLUX, add_patch(model, JointStyleID(content, style, scope, **settings)), content)

    whole, plain = painted(), sampled(FLUX, model, content)
    white = torch.ones(1, 64, 96)
    left = torch.cat([torch.ones(1, 64, 48), torch.zeros(1, 64, 48)], dim=2)
    assert relative_error(painted(mask=ImageMask(white)), whole) < 1e-4
    for half in (painted(mask=ImageMask(left)), painted(strength=0.5)):
        assert relative_error(half, whole) > 1e-3 and relative_error(half, plain) > 1e-3


def test_another_packs_attention_is_kept_and_changes_nothing() -> None:
    """Beside one the pictures go through the model before the call, in calls of one row; else they ride in it."""
    model = FLUX.model()
    pair = inverted(FLUX, model)
    content, style = pair.select([0]), pair.select([1])
    patch = JointStyleID(content, style, everywhere(model))
    occupied, calls = watched(model)
    riding, apart = (sampled(FLUX, add_patch(each, patch), content) for each in (model, occupied))
    assert relative_error(apart, riding) < 1e-5
    assert {len(attention.query) for call in calls for attention in call.attentions} == {1}


def test_half_precision_keeps_its_kind() -> None:
    family = TRANSFORMERS["qwen_image"]
    whole, half = family.model(), family.model(dtype=torch.bfloat16)
    pair = inverted(family, whole)
    content, style = pair.select([0]), pair.select([1])
    made = [
        sampled(family, add_patch(model, JointStyleID(content, style, everywhere(model))), content)
        for model in (whole, half)
    ]
    assert relative_error(made[1], made[0]) < 0.1
