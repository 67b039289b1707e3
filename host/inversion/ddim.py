"""DDIM inversion of pictures on ComfyUI's sampler, and sampling them back."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ...attention.functional.inversion import (
    DDIMConvention,
    ddim_inverse_input,
    ddim_inverse_step,
    ddim_step,
    inversion_timesteps,
    sampling_timesteps,
)
from ...attention.references.trajectory import ReferenceTrajectory
from ..conditioning import Text
from ..identity import FLOW, stamp_of
from .runs import (
    Inversion,
    SamplerCall,
    check_steps,
    check_unet_channels,
    falling_levels,
    noise_levels,
    sample_with_text,
    sample_without_noise,
    start_latent,
    walk_sampler,
)


def invert(model: Any, pictures: Tensor, steps: int, convention: DDIMConvention, text: Text) -> Inversion:
    """Inverts clean latents (images, channels, height, width), as from VAE Encode and `picture_latents`, as one batch.

    The model is called once per step. Raises ValueError for a model, a number of steps or a text that cannot be used.
    """
    stamp = stamp_of(model)
    if stamp.prediction == FLOW:
        raise ValueError(f"This model ({stamp.family}) is a flow model, which DDIM cannot invert.")
    check_steps(steps)
    check_unet_channels(model)
    sigmas = noise_levels(model, inversion_timesteps(steps, convention))
    inversion = _Inversion(convention, stamp.prediction == "v")
    noise, shown = sample_with_text(model, pictures, sigmas, text, inversion)
    latents = torch.stack(inversion.latents).float().cpu()
    trajectory = ReferenceTrajectory(
        latents, tuple(sigmas.tolist()), steps, convention, stamp, shown.context, shown.vector, text.guidance
    )
    return Inversion(trajectory, noise)


def sample_back(model: Any, trajectory: ReferenceTrajectory, text: Text) -> Tensor:
    """The pictures sampled by DDIM from the noisy end over the trajectory's points, as latents for VAE Decode."""
    falling = falling_levels(trajectory)
    start = start_latent(model, trajectory.latents[-1], falling[0].item())
    back = sample_without_noise(model, start, falling, text, walk_sampler(_ddim))
    return back / math.sqrt(1 + trajectory.sigmas[0] ** 2)


def sampling_sigmas(model: Any, trajectory: ReferenceTrajectory, skip: int = 0) -> Tensor:
    """The falling noise levels for sampling, down to that of timestep 0, without the first `skip` of them."""
    falling = sampling_timesteps(trajectory.steps)[::-1][skip:]
    return noise_levels(model, [*falling, 0])


class _Inversion:
    """Steps up a rising ladder that keep the latent of every point, scaled as UNet input."""

    def __init__(self, convention: DDIMConvention, predicts_v: bool) -> None:
        self.latents: list[Tensor] = []
        self._convention, self._predicts_v = convention, predicts_v

    def __call__(self, call: SamplerCall, x: Tensor, levels: list[float]) -> Tensor:
        x = x * math.sqrt(1 + levels[0] ** 2)  # the picture counts as a latent of the first level
        self._keep(x, levels[0])
        for index, (sigma, target) in enumerate(zip(levels[:-1], levels[1:], strict=True)):
            x, denoised = self._step(call, x, sigma, target)
            self._keep(x, target)
            call.report(index, sigma, x, denoised)
        return x

    def _step(self, call: SamplerCall, x: Tensor, sigma: float, target: float) -> tuple[Tensor, Tensor]:
        if self._convention == "styleid":
            denoised = call.denoise(x, sigma)
            return ddim_step(x, denoised, sigma, target), denoised
        seen = ddim_inverse_input(x, sigma, target)
        denoised = call.denoise(seen, target)
        return ddim_inverse_step(x, seen, denoised, sigma, target, self._predicts_v), denoised

    def _keep(self, x: Tensor, sigma: float) -> None:
        self.latents.append(x / math.sqrt(1 + sigma**2))


def _ddim(call: SamplerCall, x: Tensor, levels: list[float]) -> Tensor:
    """DDIM down falling levels, of which the last may be above zero."""
    for index, (sigma, target) in enumerate(zip(levels[:-1], levels[1:], strict=True)):
        denoised = call.denoise(x, sigma)
        x = ddim_step(x, denoised, sigma, target)
        call.report(index, sigma, x, denoised)
    return x
