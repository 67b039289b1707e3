"""Edit-friendly DDPM inversion (arXiv:2304.06140): for each sampling step, the noise that leads to a given picture.

The states x_t of the picture are noised one by one, each by a noise of its own, not along a chain. The network then
walks down over them; at each step the noise z is what is missing between the mean it predicts and the next state:

    z_t = (x_{t-1} - mu_t) / (eta * sqrt(V_t))

Sampling with these z gives the picture back; sampling with them and another prompt keeps its layout.

States are as the UNet is fed them, sqrt(a) * x0 + sqrt(1 - a) * noise with 1 / a = 1 + sigma^2, as the paper writes
them and trajectories keep them: a replay then starts from the very numbers the inversion passed, and takes the same
steps to the bit. The z would be the same in ComfyUI's x0 + sigma * noise, where x and sqrt(V) are both 1 / sqrt(a)
times as large.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Denoise = Callable[[Tensor, float], Tensor]
"""What the network, guidance included, takes a state at a noise level for: the clean latent."""


@dataclass(frozen=True, eq=False)
class ReverseStep:
    """One step down: what was denoised on the level `sigma`, the noise it took, and the state on the level `target`."""

    sigma: float
    target: float
    denoised: Tensor
    noise: Tensor
    state: Tensor


def noised_states(picture: Tensor, noises: Tensor, sigmas: Sequence[float]) -> Tensor:
    """The picture on every level of a rising ladder, each with a noise of its own (steps, images, ...).

    The picture itself counts as the state of the lowest level, as it does in the authors' code.
    """
    levels = zip(sigmas[1:], noises, strict=True)
    return torch.stack([picture, *((picture + sigma * noise) / size_at(sigma) for sigma, noise in levels)])


def explained(states: Tensor, sigmas: Sequence[float], denoise: Denoise, eta: float = 1.0) -> Iterator[ReverseStep]:
    """Walks down over the states of a rising ladder, from the noisiest, and finds the noise of every step.

    Each step starts where the one before led, so that rounding does not add up.
    """
    x = states[-1]
    for place in range(len(states) - 2, -1, -1):
        sigma, target = sigmas[place + 1], sigmas[place]
        denoised = denoise(x, sigma)
        noise = explaining_noise(x, denoised, states[place], sigma, target, eta)
        x = reverse_step(x, denoised, noise, sigma, target, eta)
        yield ReverseStep(sigma, target, denoised, noise, x)


def replayed(
    x: Tensor, noises: Tensor, sigmas: Sequence[float], denoise: Denoise, eta: float = 1.0
) -> Iterator[ReverseStep]:
    """Walks down a rising ladder from `x` on its top, with the noises that lead to each of its other points."""
    for place in range(len(noises) - 1, -1, -1):
        sigma, target = sigmas[place + 1], sigmas[place]
        denoised = denoise(x, sigma)
        x = reverse_step(x, denoised, noises[place], sigma, target, eta)
        yield ReverseStep(sigma, target, denoised, noises[place], x)


def without_last(noises: Tensor) -> Tensor:
    """The noises of a ladder with none for the step to its lowest point, as the authors' code leaves it."""
    return torch.cat([torch.zeros_like(noises[:1]), noises[1:]])


def reverse_step(x: Tensor, denoised: Tensor, noise: Tensor, sigma: float, target: float, eta: float = 1.0) -> Tensor:
    """One step from `sigma` to `target`: of DDPM at `eta` 1, of DDIM at 0."""
    return _mean(x, denoised, sigma, target, eta) + eta * math.sqrt(variance(sigma, target)) * noise


def explaining_noise(
    x: Tensor, denoised: Tensor, lower: Tensor, sigma: float, target: float, eta: float = 1.0
) -> Tensor:
    """The noise with which a step from `x` at `sigma` leads to `lower` at `target`."""
    return (lower - _mean(x, denoised, sigma, target, eta)) / (eta * math.sqrt(variance(sigma, target)))


def variance(sigma: float, target: float) -> float:
    """V of a step, (1 - a_target) / (1 - a_sigma) * (1 - a_sigma / a_target)."""
    return target**2 / (1 + target**2) * (1 - (target / sigma) ** 2)


def size_at(sigma: float) -> float:
    """How many times as large a state is where ComfyUI samples, on x0 + sigma * noise."""
    return math.sqrt(1 + sigma**2)


def _mean(x: Tensor, denoised: Tensor, sigma: float, target: float, eta: float) -> Tensor:
    noise = (x * size_at(sigma) - denoised) / sigma
    noise_share = target**2 / (1 + target**2)
    # eta, not eta^2, under the root, as in the authors' code: DDPM is eta 1, where both are the same.
    # https://github.com/inbarhub/DDPM_inversion/blob/58fc881772d34f0c24be9e34725d213731aa009d/ddm_inversion/inversion_utils.py
    return denoised / size_at(target) + math.sqrt(noise_share - eta * variance(sigma, target)) * noise
