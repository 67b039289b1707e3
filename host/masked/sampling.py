"""The noise of a masked transformer: its noise level (sigma) is the share of tokens that are masked, from 1 to 0."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

LEVELS = 1000
ABOVE_ALL = 999999999.9
"""What ComfyUI's own answer for the beginning of a schedule is."""


class MaskedTokens:
    """The model reads tokens and predicts logits, both as they are; nothing is scaled, and noise adds nothing."""

    def calculate_input(self, sigma: Tensor, noise: Tensor) -> Tensor:
        return noise

    def calculate_denoised(self, sigma: Tensor, model_output: Tensor, model_input: Tensor) -> Tensor:
        return model_output

    def noise_scaling(self, sigma: Tensor, noise: Tensor, latent_image: Tensor, max_denoise: bool = False) -> Tensor:
        return latent_image

    def inverse_noise_scaling(self, sigma: Tensor, latent: Tensor) -> Tensor:
        return latent


class MaskRatios(torch.nn.Module):
    """Shares of masked tokens by place in the schedule: a cosine from 1 to 0."""

    sigmas: Tensor

    def __init__(self) -> None:
        super().__init__()
        places = torch.arange(1, LEVELS + 1) / LEVELS
        self.register_buffer("sigmas", torch.sin(places * math.pi / 2), persistent=False)

    @property
    def sigma_min(self) -> Tensor:
        return self.sigmas[0]

    @property
    def sigma_max(self) -> Tensor:
        return self.sigmas[-1]

    def timestep(self, sigma: Tensor) -> Tensor:
        return torch.asin(sigma.clamp(0, 1)) * (2 / math.pi) * LEVELS

    def sigma(self, timestep: Tensor) -> Tensor:
        return torch.sin(timestep / LEVELS * math.pi / 2)

    def percent_to_sigma(self, percent: float) -> float:
        if percent <= 0.0:
            return ABOVE_ALL
        if percent >= 1.0:
            return 0.0
        # In float32 and in the order of the schedule's own, so that a window's edge falls on its step.
        return float(torch.cos(torch.tensor(percent, dtype=torch.float32) * math.pi / 2))


class MaskedSampling(MaskRatios, MaskedTokens):
    """ComfyUI's `model_sampling` of a masked transformer."""

    def set_parameters(self, *_: Any, **__: Any) -> None:
        """There are none."""
