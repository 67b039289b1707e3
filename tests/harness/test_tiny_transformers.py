"""The tiny transformers are the host's own, run by its samplers, and every attention in them changes the picture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from semblance.tests.support.speeds import TRANSFORMER_NAMES
from semblance.tests.support.studio import relative_error
from semblance.tests.support.transformers import HUNYUAN_DIT, TRANSFORMERS, TransformerFamily, sample, watched


def sampled(
    family: TransformerFamily, model: ModelPatcher | None = None, seed: int = 1, text: int = 1, **settings: Any
) -> Tensor:
    positive, negative = (family.conditioning(seed=number) for number in (text, 2))
    return sample(model or family.model(), positive, negative, family.latent(), seed=seed, **settings)


def test_the_fixture_stands_for_every_family() -> None:
    assert tuple(TRANSFORMERS) == TRANSFORMER_NAMES


def test_noise_and_text_and_guidance_change_the_picture(family: TransformerFamily) -> None:
    plain = sampled(family)
    assert torch.isfinite(plain).all() and plain.std() > 0.1
    assert torch.equal(sampled(family), plain)
    assert relative_error(sampled(family, seed=2), plain) > 0.1
    assert relative_error(sampled(family, text=3), plain) > 0.01
    assert relative_error(sampled(family, cfg=1.0), plain) > 0.01


def test_no_attention_is_without_effect(family: TransformerFamily) -> None:
    model, calls = watched(family.model())
    plain = sampled(family, model, steps=1)
    changes = {}
    for number in range(len(calls[0].attentions)):
        model, _ = watched(family.model(), lambda at, output, number=number: output * (at != number))
        changes[number] = relative_error(sampled(family, model, steps=1), plain)
    assert min(changes.values()) > 1e-3, changes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_samples_nearly_the_same(family: TransformerFamily, dtype: torch.dtype) -> None:
    plain, half = sampled(family), sampled(family, family.model(dtype=dtype))
    assert torch.isfinite(half).all()
    assert relative_error(half, plain) < 0.05


def test_one_family_is_there_whose_attention_never_asks_us() -> None:
    model, calls = watched(HUNYUAN_DIT.model())
    positive, negative = (HUNYUAN_DIT.conditioning(77, seed=seed) for seed in (1, 2))
    result = sample(model, positive, negative, HUNYUAN_DIT.latent())
    assert torch.isfinite(result).all() and calls and not any(call.attentions for call in calls)
