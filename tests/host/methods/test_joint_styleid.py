"""StyleID on transformers: a page of plain torch in every family, and what must come out when nothing is changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
from semblance.tests.support.reference_page import anatomy, by_head, own_mask
from semblance.tests.support.speeds import FLOW_NAMES, slow_but
from semblance.tests.support.studio import record_calls, relative_error
from semblance.tests.support.transformers import TRANSFORMERS, SeenCall, TransformerFamily, watched
from semblance.tests.tiny_models import sampler_custom

FAMILIES = slow_but(FLOW_NAMES, ("flux", "qwen_image", "z_image", "wan"))
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


def seen(model: ModelPatcher, family: TransformerFamily, state: Tensor, sigma: float, **extras: Any) -> SeenCall:
    """The attentions of a call with a state alone."""
    watching, calls = watched(model)
    answer(watching, family, state, sigma, **extras)
    return calls[0]


def page(
    content: SeenCall, style: SeenCall, firsts: Sequence[int | None], tokens: int, gamma: float, temperature: float
) -> Any:
    """StyleID's attention in plain torch. `firsts` are as in `Anatomy`, `tokens` are the picture's."""
    passed: list[int] = []
    count = len(content.attentions)

    def attend(
        function: Any, query: Tensor, key: Tensor, value: Tensor, heads: int, *rest: Any, **named: Any
    ) -> Tensor:
        number = len(passed) % count
        passed.append(1)
        plain = function(query, key, value, heads, *rest, **named)
        place = number - (count - len(firsts))
        if place < 0 or (first := firsts[place]) is None:
            return plain
        there = slice(first, first + tokens)
        of_content, of_style = content.attentions[number], style.attentions[number]
        skip = bool(named.get("skip_reshape", rest[2] if len(rest) > 2 else False))
        mask = named.get("mask", rest[0] if rest else None)
        q, k, v, q_content, k_style, v_style = (
            by_head(part, heads, skip)
            for part in (query, key, value, of_content.query, of_style.key, of_style.value)
        )  # fmt: skip
        k, v = k.clone(), v.clone()
        mixed = gamma * q_content[:, :, there] + (1 - gamma) * q[:, :, there]
        k[:, :, there], v[:, :, there] = k_style[:, :, there], v_style[:, :, there]
        logits = temperature * mixed @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        if mask is not None:
            logits = logits + own_mask(mask, 0, heads, q.shape[2], k.shape[2])[:, there]
        made = plain.clone()
        made[:, there] = (logits.softmax(-1) @ v).transpose(1, 2).flatten(2).to(plain)
        return made

    return attend


@dataclass(frozen=True, eq=False)
class Trial:
    """A content and a style of one inversion, and a state near the content's at one of its levels."""

    family: TransformerFamily
    model: ModelPatcher
    pair: ReferenceTrajectory

    @classmethod
    def on(cls, name: str) -> Trial:
        model = TRANSFORMERS[name].model()
        return cls(TRANSFORMERS[name], model, inverted(TRANSFORMERS[name], model))

    @property
    def sigma(self) -> float:
        return self.pair.sigmas[2]

    def patched(self) -> ModelPatcher:
        return add_patch(self.model, JointStyleID(self.pair.select([0]), self.pair.select([1]), everywhere(self.model)))

    def by_hand(self, more: int = 0, **shown: Any) -> ModelPatcher:
        """The model with the page in its attentions, over the picture's tokens and as many `more` behind them."""
        body, sigma = anatomy(self.family.name), self.sigma
        content, style = (
            seen(self.model, self.family, self.pair.select([image]).at(sigma), sigma, **shown) for image in (0, 1)
        )
        override = page(content, style, body.firsts, (8 * 12 + more) // body.patch**2, 0.75, 1.5)
        written = self.model.clone()
        written.model_options["transformer_options"]["optimized_attention_override"] = override
        return written

    def answer(self, model: ModelPatcher, **shown: Any) -> Tensor:
        content = self.pair.select([0]).at(self.sigma)
        noise = torch.randn(content.shape, generator=torch.Generator().manual_seed(8))
        return answer(model, self.family, content + 0.3 * noise, self.sigma, **shown)


@pytest.mark.parametrize("name", slow_but(FLOW_NAMES, ("flux", "z_image", "wan")))
def test_one_call_equals_a_page_of_plain_torch(name: str) -> None:
    trial = Trial.on(name)
    made, expected, plain = (trial.answer(each) for each in (trial.patched(), trial.by_hand(), trial.model))
    assert relative_error(made, expected) < 1e-5 and relative_error(plain, expected) > 1e-3


def answer(model: ModelPatcher, family: TransformerFamily, state: Tensor, sigma: float, **extras: Any) -> Tensor:
    """What the model makes of a state in one call. Pictures that cannot ride in it go through before."""
    counted, calls = record_calls(model)
    text, latent = family.conditioning(**extras), {"samples": as_latent(model, state, sigma)}
    sampler_custom(counted, text, text, latent, torch.tensor([sigma, sigma / 2]), sampler=flow_sampler())
    return [call for call in calls if call["sigma"] == calls[0]["sigma"]][-1]["output"][:1]


@pytest.mark.parametrize("name", ["flux", "qwen_image"])
def test_the_reference_tokens_of_an_editing_model_are_left_alone(name: str) -> None:
    """Kontext's reference stands behind the picture, whose tokens alone take the content's and the style's place."""
    trial = Trial.on(name)
    shown = {"reference_latents": [trial.family.latent(1, 8, 8, seed=11)["samples"]]}
    ways = trial.patched(), trial.by_hand(), trial.by_hand(more=8 * 8, **shown), trial.model
    made, expected, longer, plain = (trial.answer(each, **shown) for each in ways)
    assert relative_error(made, expected) < 1e-5 and relative_error(plain, expected) > 1e-3
    assert relative_error(longer, expected) > 1e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_the_contents_own_features_give_the_content_back(name: str) -> None:
    """With gamma 1, temperature 1 and the content as its own style, every attention sees what it saw anyway."""
    family = TRANSFORMERS[name]
    model = family.model()
    pair = inverted(family, model, steps=12)
    content, other = pair.select([0]), pair.select([1])

    own, strange = (
        add_patch(model, JointStyleID(content, style, everywhere(model), gamma=1.0, temperature=1.0))
        for style in (content, other)
    )
    sigma = content.sigmas[6]
    exact, of_own, of_strange = (answer(each, family, content.at(sigma), sigma) for each in (model, own, strange))
    assert relative_error(of_own, exact) < 1e-5 and relative_error(of_strange, exact) > 1e-3
    plain, back, away = (sampled(family, each, content) for each in (model, own, strange))
    missed = relative_error(plain, as_latent(model, content.latents[0]))
    # The path between two points is a line there, and the model's own on the way back.
    assert relative_error(back, plain) < min(2 * missed + 0.01, relative_error(away, plain))


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
    moved = painted(mask=ImageMask(left)) - plain
    assert moved[..., :6].norm() > 2 * moved[..., 6:].norm(), "the left half attends otherwise, the right sees it"
    half = painted(strength=0.5)
    assert 1e-3 < relative_error(half, plain) < relative_error(whole, plain)


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
    watching, calls = watched(half)
    made, alone, beside = (
        sampled(family, add_patch(model, JointStyleID(content, style, everywhere(model))), content)
        for model in (whole, half, watching)
    )
    assert relative_error(alone, made) < 0.1 and relative_error(beside, alone) < 0.02
    attentions = [one for call in calls for one in call.attentions]
    assert {part.dtype for one in attentions for part in (one.query, one.key, one.value)} == {torch.bfloat16}
