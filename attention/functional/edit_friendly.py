"""Edit-friendly DDPM inversion (arXiv:2304.06140): for each sampling step, the noise that leads to a given picture.

The states x_t are the picture with independent noises added, not a chain. The sampler then walks down over them; the
noise z of a step is the scaled difference between the next state and the mean that the network predicts:

    z_t = (x_{t-1} - mu_t) / (eta * sqrt(V_t))

Sampling with these z gives the picture back; sampling with them and another prompt keeps its layout.

States are scaled as UNet inputs, sqrt(a) * x0 + sqrt(1 - a) * noise with 1 / a = 1 + sigma^2, as in the paper and in
trajectories. A replay then starts from exactly the numbers of the inversion and its steps are bitwise equal. In
ComfyUI's scale, x0 + sigma * noise, z is the same: x and sqrt(V) are both larger by 1 / sqrt(a).

A rising ladder `sigmas` has points 0 (the picture) to `steps` (the noisiest). Tensors are (images, channels, height,
width); the noise with index i leads to point i.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Denoise = Callable[[Tensor, float], Tensor]
"""(state, sigma) -> the clean latent that the network predicts, with guidance."""


@dataclass(frozen=True, eq=False)
class ReverseStep:
    """One step down: the prediction at level `sigma`, the noise added, and the resulting state at level `target`."""

    sigma: float
    target: float
    denoised: Tensor
    noise: Tensor
    state: Tensor


def noised_states(picture: Tensor, noises: Tensor, sigmas: Sequence[float]) -> Tensor:
    """The picture at every point of a rising ladder, (steps + 1, images, ...), with independent `noises` (steps, ...).

    The picture itself is the state of the lowest level, as in the authors' code.
    """
    levels = zip(sigmas[1:], noises, strict=True)
    return torch.stack([picture, *((picture + sigma * noise) / state_scale(sigma) for sigma, noise in levels)])


def ddpm_inversion(
    states: Tensor, sigmas: Sequence[float], denoise: Denoise, eta: float = 1.0
) -> Iterator[ReverseStep]:
    """The steps from the noisiest of `states` (steps + 1, images, ...) down a rising ladder, with the noise of each.

    Each step starts from the result of the step before, not from its state, so that rounding does not add up.
    """
    x = states[-1]
    for index in range(len(states) - 2, -1, -1):
        sigma, target = sigmas[index + 1], sigmas[index]
        denoised = denoise(x, sigma)
        noise = step_noise(x, denoised, states[index], sigma, target, eta)
        x = ddpm_step(x, denoised, noise, sigma, target, eta)
        yield ReverseStep(sigma, target, denoised, noise, x)


def ddpm_replay(
    x: Tensor, noises: Tensor, sigmas: Sequence[float], denoise: Denoise, eta: float = 1.0
) -> Iterator[ReverseStep]:
    """The steps from `x` at the top of a rising ladder down to its lowest point, with given `noises` (steps, ...)."""
    for index in range(len(noises) - 1, -1, -1):
        sigma, target = sigmas[index + 1], sigmas[index]
        denoised = denoise(x, sigma)
        x = ddpm_step(x, denoised, noises[index], sigma, target, eta)
        yield ReverseStep(sigma, target, denoised, noises[index], x)


def with_noiseless_last_step(noises: Tensor) -> Tensor:
    """`noises` (steps, ...) with zeros for index 0, the last step of a sampling, as in the authors' code."""
    return torch.cat([torch.zeros_like(noises[:1]), noises[1:]])


def ddpm_step(x: Tensor, denoised: Tensor, noise: Tensor, sigma: float, target: float, eta: float = 1.0) -> Tensor:
    """One step from `sigma` down to `target`: DDPM at `eta` 1, DDIM at 0."""
    return _mean(x, denoised, sigma, target, eta) + eta * math.sqrt(variance(sigma, target)) * noise


def step_noise(x: Tensor, denoised: Tensor, lower: Tensor, sigma: float, target: float, eta: float = 1.0) -> Tensor:
    """The noise with which `ddpm_step` from `x` at `sigma` gives `lower` at `target`. `eta` must be above 0."""
    return (lower - _mean(x, denoised, sigma, target, eta)) / (eta * math.sqrt(variance(sigma, target)))


def variance(sigma: float, target: float) -> float:
    """V of a DDPM step, (1 - a_target) / (1 - a_sigma) * (1 - a_sigma / a_target)."""
    return target**2 / (1 + target**2) * (1 - (target / sigma) ** 2)


def state_scale(sigma: float) -> float:
    """The factor from a state to ComfyUI's x0 + sigma * noise."""
    return math.sqrt(1 + sigma**2)


def _mean(x: Tensor, denoised: Tensor, sigma: float, target: float, eta: float) -> Tensor:
    noise = (x * state_scale(sigma) - denoised) / sigma
    noise_fraction = target**2 / (1 + target**2)
    # eta, not eta^2, under the root, as in the authors' code: DDPM is eta 1, where both are the same.
    # https://github.com/inbarhub/DDPM_inversion/blob/58fc881772d34f0c24be9e34725d213731aa009d/ddm_inversion/inversion_utils.py
    return denoised / state_scale(target) + math.sqrt(noise_fraction - eta * variance(sigma, target)) * noise
