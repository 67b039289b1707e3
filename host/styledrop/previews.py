"""Pictures sampled while an adapter is tuned, to see what it has learnt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import comfy.sample
import comfy.samplers
import torch
from torch import Tensor

from ..conditioning import Conditioning
from ..masked.sampler import TEMPERATURE, MaskSchedule, masked_sampler
from ..masked.sampling import MaskedSampling


@dataclass(frozen=True, eq=False)
class Preview:
    """How the pictures are sampled: the same way each time, so that only the adapter differs."""

    prompts: Sequence[Conditioning]
    negative: Conditioning
    vae: Any
    shape: tuple[int, ...]
    """Of one latent, (channels, height, width)."""
    seed: int = 0
    steps: int = 12
    cfg: float = 5.0

    def pictures(self, model: Any) -> Tensor:
        """One picture for each prompt, (pictures, height, width, 3), by Euler steps or as the model's kind needs it."""
        latent = torch.zeros(1, *self.shape)
        with torch.no_grad():
            noise = comfy.sample.prepare_noise(latent, self.seed)
            sampling = (self.cfg, *self._sampler(model))
            samples = [
                comfy.sample.sample_custom(
                    model, noise, *sampling, prompt, self.negative, latent, disable_pbar=True, seed=self.seed
                )
                for prompt in self.prompts
            ]
            pictures = self.vae.decode(torch.cat(samples))
        return pictures.reshape(-1, *pictures.shape[-3:]).float().clamp(0, 1).cpu()

    def _sampler(self, model: Any) -> tuple[Any, Tensor]:
        """The SAMPLER and the SIGMAS of MODEL."""
        sampling = model.get_model_object("model_sampling")
        if isinstance(sampling, MaskedSampling):
            schedule = MaskSchedule(self.steps, TEMPERATURE)
            return masked_sampler(schedule), schedule.sigmas()
        sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", self.steps)
        return comfy.samplers.sampler_object("euler"), sigmas
