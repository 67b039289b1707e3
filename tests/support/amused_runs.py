"""Runs of a small aMUSEd model by ComfyUI's guider and by diffusers' pipelines, on the same random numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import comfy.samplers
import torch
from torch import Tensor

from semblance.host.masked.loading import MaskedParts
from semblance.host.masked.sampler import MaskSchedule, masked_sampler

from .amused import CODEBOOK, TEXT, Amused

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
