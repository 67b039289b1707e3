"""Pictures sampled while an adapter is tuned, to see what it has learnt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import comfy.sample
import torch
from torch import Tensor

from ..conditioning import Conditioning


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
        """One picture for each prompt, (pictures, height, width, 3), by ComfyUI's own sampler on MODEL."""
        latent = torch.zeros(1, *self.shape)
        with torch.no_grad():
            noise = comfy.sample.prepare_noise(latent, self.seed)
            settings = (self.steps, self.cfg, "euler", "normal")
            samples = [
                comfy.sample.sample(
                    model, noise, *settings, prompt, self.negative, latent, disable_pbar=True, seed=self.seed
                )
                for prompt in self.prompts
            ]
            pictures = self.vae.decode(torch.cat(samples))
        return pictures.reshape(-1, *pictures.shape[-3:]).float().clamp(0, 1).cpu()
