"""Inverting pictures on the real sampler: the noise that DDIM would have made them from, and every step to it."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import comfy.model_sampling
import comfy.sample
import comfy.samplers
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
from ..conditioning import Text, shown_text
from ..identity import stamp_of
from .runs import (
    Inversion,
    check_latents,
    check_steps,
    denoise_at,
    noise_levels,
    sample_without_noise,
    start_latent,
)


def invert(model: Any, pictures: Tensor, steps: int, convention: DDIMConvention, text: Text) -> Inversion:
    """Inverts clean latents (images, channels, height, width), as VAE Encode gives them, all in one batch.

    The model is called once a step. Raises ValueError for a model or a latent that cannot be inverted.
    """
    stamp = stamp_of(model)
    check_latents(pictures)
    check_steps(steps)
    sigmas = noise_levels(model, inversion_timesteps(steps, convention))
    recorder = _Recorder(convention, stamp.prediction == "v")
    noise = sample_without_noise(model, pictures, sigmas, text, comfy.samplers.KSAMPLER(recorder))
    latents = torch.stack(recorder.latents).float().cpu()
    context, vector = recorder.text
    trajectory = ReferenceTrajectory(
        latents, tuple(sigmas.tolist()), steps, convention, stamp, context, vector, text.guidance
    )
    return Inversion(trajectory, noise)


def sample_back(model: Any, trajectory: ReferenceTrajectory, text: Text) -> Tensor:
    """The pictures sampled from the noisy end over the same points, as clean latents for VAE Decode."""
    falling = torch.tensor(trajectory.sigmas).flip(0)
    start = start_latent(model, trajectory.latents[-1], falling[0].item())
    back = sample_without_noise(model, start, falling, text, comfy.samplers.KSAMPLER(_euler))
    return back / math.sqrt(1 + trajectory.sigmas[0] ** 2)


def sampling_sigmas(model: Any, trajectory: ReferenceTrajectory, skip: int = 0) -> Tensor:
    """The falling ladder to sample over, ending on the level of timestep 0; `skip` leaves out its first points."""
    falling = sampling_timesteps(trajectory.steps)[::-1][skip:]
    return noise_levels(model, [*falling, 0])


class _Recorder:
    """A sampler function that climbs a rising ladder and keeps the latent at every point."""

    def __init__(self, convention: DDIMConvention, predicts_v: bool) -> None:
        self.latents: list[Tensor] = []
        self._convention, self._predicts_v = convention, predicts_v
        self._text: tuple[Tensor, Tensor | None] | None = None

    @property
    def text(self) -> tuple[Tensor, Tensor | None]:
        assert self._text is not None
        return self._text

    def __call__(
        self, model: Any, x: Tensor, sigmas: Tensor, extra_args: dict[str, Any], callback: Any, disable: Any
    ) -> Tensor:
        self._text = shown_text(model.inner_model, len(x))
        levels: list[float] = sigmas.tolist()
        x = x * math.sqrt(1 + levels[0] ** 2)  # the picture counts as a latent of the first level
        self._keep(x, levels[0])
        for place, (sigma, target) in enumerate(zip(levels[:-1], levels[1:], strict=True)):
            denoise = partial(denoise_at, model, extra_args)
            if self._convention == "styleid":
                denoised = denoise(x, sigma)
                x = ddim_step(x, denoised, sigma, target)
            else:
                seen = ddim_inverse_input(x, sigma, target)
                denoised = denoise(seen, target)
                x = ddim_inverse_step(x, seen, denoised, sigma, target, self._predicts_v)
            self._keep(x, target)
            if callback is not None:
                callback({"x": x, "i": place, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
        return x

    def _keep(self, x: Tensor, sigma: float) -> None:
        self.latents.append(x / math.sqrt(1 + sigma**2))


def _euler(model: Any, x: Tensor, sigmas: Tensor, extra_args: dict[str, Any], callback: Any, disable: Any) -> Tensor:
    """DDIM downwards, which may end above zero."""
    levels: list[float] = sigmas.tolist()
    for place, (sigma, target) in enumerate(zip(levels[:-1], levels[1:], strict=True)):
        denoised = denoise_at(model, extra_args, x, sigma)
        x = ddim_step(x, denoised, sigma, target)
        if callback is not None:
            callback({"x": x, "i": place, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
    return x
