"""What every inversion shares: runs of the sampler without added noise, and what they may start from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_sampling
import comfy.sample
import comfy.samplers
import latent_preview
import torch
from torch import Tensor

from ...attention.references.trajectory import ReferenceTrajectory
from ..conditioning import Text

MOST_STEPS = 500


@dataclass(frozen=True, eq=False)
class Inversion:
    """A trajectory with what a sampler needs to come back from its end."""

    trajectory: ReferenceTrajectory
    noise: Tensor
    """The noisy end as a sampler node takes it, without adding noise: (images, channels, height, width)."""


@dataclass(frozen=True, eq=False)
class Start:
    """What the sampler is given: latents that need no added noise, and the ladder."""

    latent: Tensor
    sigmas: Tensor


def noise_levels(model: Any, timesteps: Sequence[int]) -> Tensor:
    """The noise levels of the training's timesteps, float32 on the CPU."""
    return model.get_model_object("model_sampling").sigmas.float().cpu()[list(timesteps)]


def start_latent(model: Any, latent: Tensor, sigma: float) -> Tensor:
    """A latent as the UNet is fed it, made one for a sampler node that starts at `sigma` and adds no noise."""
    return model.model.process_latent_out(latent * math.sqrt(1 + sigma**2))


def check_latents(latents: Tensor) -> None:
    """Refuses latents that no inversion can start from, with a ValueError."""
    if latents.ndim != 4 or 0 in latents.shape:
        raise ValueError(
            f"The latent has shape {tuple(latents.shape)}; expected (images, channels, height, width), none of them 0. "
            "Connect a VAE Encode node."
        )
    if not torch.isfinite(latents).all():
        raise ValueError(
            "The latent holds values that are not numbers (NaN or infinite). The VAE may have overflowed in fp16; "
            "encode with --fp32-vae."
        )
    if not latents.any():
        raise ValueError(
            "The latent is empty (all zeros): there is no picture to invert. Connect VAE Encode, not Empty Latent."
        )


def check_steps(steps: int) -> None:
    """Refuses a number of steps that no ladder can be made of, with a ValueError."""
    if not 1 < steps <= MOST_STEPS:
        raise ValueError(f"{steps} steps cannot be inverted; choose a number from 2 to {MOST_STEPS}, such as 50.")


def denoise_at(model: Callable[..., Tensor], extra_args: dict[str, Any], x: Tensor, sigma: float) -> Tensor:
    """What the guider, called from a sampler function, takes `x` on the level `sigma` for."""
    return model(x, x.new_full((len(x),), sigma), **extra_args)


def sample_without_noise(model: Any, latent: Tensor, sigmas: Tensor, text: Text, sampler: Any) -> Tensor:
    """A run of `sampler` from `latent` without added noise, through ComfyUI's guider, progress and preview."""
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(text.positive, text.negative)
    guider.set_cfg(text.guidance)
    latent = comfy.sample.fix_empty_latent_channels(model, latent)
    callback = latent_preview.prepare_callback(model, len(sigmas) - 1)
    return guider.sample(torch.zeros_like(latent), latent, sampler, sigmas, callback=callback, seed=0)
