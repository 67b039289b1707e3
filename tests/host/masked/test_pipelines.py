"""On the same random numbers ComfyUI, with our model and sampler, makes the pictures of diffusers' pipelines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import comfy.samplers
import pytest
import torch
from diffusers import AmusedImg2ImgPipeline, AmusedInpaintPipeline, AmusedPipeline
from torch import Tensor

from semblance.attention.functional.masked_tokens import one_hot, tokens_of
from semblance.host.masked.loading import MaskedParts
from semblance.host.masked.sampler import MaskSchedule, masked_sampler
from semblance.tests.support.amused import CODEBOOK, PIXELS, TEXT, Amused
from semblance.tests.support.frozen_cases import furthest

from .conftest import Pair

IMAGES, HEIGHT, WIDTH, SEED = 2, 8, 4, 5


@dataclass(frozen=True, eq=False)
class Texts:
    context: Tensor
    pooled: Tensor

    @classmethod
    def of(cls, seed: int) -> Texts:
        generator = torch.Generator().manual_seed(seed)
        return cls(torch.randn(1, 7, TEXT, generator=generator), torch.randn(1, TEXT, generator=generator))

    @property
    def conditioning(self) -> list[list[Any]]:
        return [[self.context, {"pooled_output": self.pooled}]]

    def rows(self, images: int) -> dict[str, Tensor]:
        return {
            "prompt_embeds": self.pooled.repeat(images, 1),
            "encoder_hidden_states": self.context.repeat(images, 1, 1),
        }


POSITIVE, NEGATIVE = Texts.of(1), Texts.of(2)


def official(amused: Amused, kind: Any, cfg: float, steps: int, **named: Any) -> tuple[Tensor, Tensor]:
    """Tokens and pictures of one of diffusers' pipelines."""
    negative = {f"negative_{name}": rows for name, rows in NEGATIVE.rows(IMAGES).items()}
    settings = {"guidance_scale": cfg, "num_inference_steps": steps, **POSITIVE.rows(IMAGES), **negative, **named}
    pipe = amused.pipeline(kind)
    tokens, picture = (
        pipe(generator=torch.Generator().manual_seed(SEED), output_type=kind, return_dict=False, **settings)[0]
        for kind in ("latent", "pt")
    )
    return tokens, picture


def sampled(
    parts: MaskedParts, cfg: float, schedule: MaskSchedule, last: int, latent: Tensor | None = None, mask: Any = None
) -> Tensor:
    """The latent that ComfyUI's own guider makes with our sampler."""
    guider = comfy.samplers.CFGGuider(parts.model)
    guider.set_conds(POSITIVE.conditioning, NEGATIVE.conditioning)
    guider.set_cfg(cfg)
    latent = torch.zeros(IMAGES, CODEBOOK, HEIGHT, WIDTH) if latent is None else latent
    sampler = masked_sampler(schedule)
    noise = torch.randn(latent.shape)
    return guider.sample(noise, latent, sampler, schedule.sigmas(last), mask, disable_pbar=True, seed=SEED)


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
