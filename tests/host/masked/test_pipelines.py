"""On the same random numbers ComfyUI, with our model and sampler, makes the pictures of diffusers' pipelines."""

from __future__ import annotations

import pytest
import torch
from diffusers import AmusedImg2ImgPipeline, AmusedInpaintPipeline, AmusedPipeline
from torch import Tensor

from semblance.attention.functional.masked_tokens import one_hot, tokens_of
from semblance.host.masked.loading import MaskedParts
from semblance.host.masked.sampler import MaskSchedule
from semblance.tests.support.amused import CODEBOOK, PIXELS
from semblance.tests.support.amused_runs import HEIGHT, IMAGES, WIDTH, official, sampled
from semblance.tests.support.frozen_cases import furthest

from .conftest import Pair


def check(parts: MaskedParts, made: Tensor, tokens: Tensor, picture: Tensor) -> None:
    assert torch.equal(made, one_hot(tokens, CODEBOOK))
    assert len(tokens.unique()) > 1
    assert furthest(parts.vae.decode(made).movedim(-1, 1), picture) <= 1e-4


@pytest.mark.parametrize(("steps", "temperature"), [(12, (2.0, 0.0)), (5, (4.0, 1.0)), (1, (2.0, 0.0))])
@pytest.mark.parametrize("cfg", [10.0, 1.0])
def test_text_to_image(pair: Pair, cfg: float, steps: int, temperature: tuple[float, float]) -> None:
    amused, parts = pair
    size = {"height": HEIGHT * PIXELS, "width": WIDTH * PIXELS}
    tokens, picture = official(amused, AmusedPipeline, cfg, steps, temperature=temperature, **size)
    check(parts, sampled(parts, cfg, MaskSchedule(steps, temperature), steps), tokens, picture)


def pictures() -> Tensor:
    return torch.rand(IMAGES, 3, HEIGHT * PIXELS, WIDTH * PIXELS, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("strength", [0.5, 0.75])
def test_image_to_image(pair: Pair, strength: float) -> None:
    amused, parts = pair
    tokens, picture = official(amused, AmusedImg2ImgPipeline, 6.0, 12, image=pictures(), strength=strength)
    latent = parts.vae.encode(pictures().movedim(1, -1))
    made = sampled(parts, 6.0, MaskSchedule(12, (2.0, 0.0)), int(12 * strength), latent)
    check(parts, made, tokens, picture)
    assert 0 < int((made == latent).all(dim=1).sum()) < IMAGES * HEIGHT * WIDTH


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_inpainting(pair: Pair, strength: float) -> None:
    amused, parts = pair
    of_tokens = torch.rand(IMAGES, 1, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(4)) < 0.6
    mask = of_tokens.float().repeat_interleave(PIXELS, 2).repeat_interleave(PIXELS, 3)
    tokens, picture = official(
        amused, AmusedInpaintPipeline, 6.0, 8, image=pictures(), mask_image=mask, strength=strength
    )
    latent = parts.vae.encode(pictures().movedim(1, -1))
    made = sampled(parts, 6.0, MaskSchedule(8, (2.0, 0.0)), int(8 * strength), latent, mask)
    check(parts, made, tokens, picture)
    kept = tokens_of(latent, CODEBOOK).where(~of_tokens[:, 0], 0)
    assert torch.equal(tokens.where(~of_tokens[:, 0], 0), kept)
