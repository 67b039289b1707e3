"""What an adapter cannot be tuned on, refused in a sentence before a model is loaded for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from comfy.model_patcher import ModelPatcher

from semblance.host.styledrop.encoding import given_examples
from semblance.host.styledrop.examples import Example, check_examples
from semblance.host.styledrop.loss_chart import reach_of, smoothed
from semblance.tests.tiny_models import Family, make_conditioning, random_latent

Models = Callable[..., ModelPatcher]


@pytest.mark.parametrize(
    "extras", [{"start_percent": 0.2}, {"end_percent": 0.7}, {"strength": 0.5}, {"gligen": ("position", None, [])}]
)
def test_a_caption_that_no_step_would_heed_is_refused(extras: dict[str, Any]) -> None:
    ((context, plain),) = make_conditioning("sd15")
    with pytest.raises(ValueError, match=f"A caption comes with '{next(iter(extras))}'"):
        Example(torch.zeros(4, 8, 8), [[context, {**plain, **extras}]])
    Example(torch.zeros(4, 8, 8), [[context, {**plain, "start_percent": 0.0, "end_percent": 1.0, "strength": 1.0}]])


def test_a_latent_with_a_noise_mask_is_refused() -> None:
    masked = {**random_latent(1, 8, 8), "noise_mask": torch.ones(1, 8, 8)}
    with pytest.raises(ValueError, match="comes with a noise mask"):
        given_examples([masked], [make_conditioning("sd15")])


def test_the_words_of_latents_are_kept_for_prompts() -> None:
    assert given_examples([random_latent(1, 8, 8)], [make_conditioning("sd15")], " in ink ").style_words == "in ink"


@pytest.mark.parametrize(
    ("kind", "other", "sentence"),
    [
        ("sd15", "sdxl", "reads text of 48 channels, but a caption has 136"),
        ("sdxl", "sd15", "with a pooled text of 88, but a caption has 48 and no pooled text"),
    ],
)
def test_the_text_of_another_family_is_refused(model_of: Models, kind: Family, other: Family, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        check_examples(model_of(kind), [Example(torch.zeros(4, 8, 8), make_conditioning(other))])


def test_the_pooled_text_of_sdxl_is_needed(model_of: Models) -> None:
    ((context, _),) = make_conditioning("sdxl")
    with pytest.raises(ValueError, match="and no pooled text"):
        check_examples(model_of("sdxl"), [Example(torch.zeros(4, 8, 8), [[context, {}]])])


def test_the_latent_of_a_video_is_refused(model_of: Models) -> None:
    with pytest.raises(ValueError, match="has 5 dimensions; expected 4"):
        check_examples(model_of(), [Example(torch.zeros(4, 3, 8, 8), make_conditioning("sd15"))])


def test_the_loss_at_first_is_an_average_of_as_many_steps_as_that_at_the_end() -> None:
    losses = [100.0, *(float(number) for number in range(99))]
    assert reach_of(losses) == 6
    mean = smoothed(losses)
    assert len(mean) == 95 and mean[0] == sum(losses[:6]) / 6 and mean[-1] == sum(losses[-6:]) / 6
