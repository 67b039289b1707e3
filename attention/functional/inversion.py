"""DDIM and its inversion (arXiv:2010.02502): ladders of timesteps, and single steps between noise levels.

Steps work on x = x0 + sigma * noise. What the UNet is fed is x / sqrt(1 + sigma^2).
"""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

DDIMConvention = Literal["styleid", "ddim"]
Convention = Literal["styleid", "ddim", "edit-friendly"]
DDIM_CONVENTIONS: tuple[DDIMConvention, ...] = ("styleid", "ddim")
CONVENTIONS: tuple[Convention, ...] = (*DDIM_CONVENTIONS, "edit-friendly")
TRAINING_STEPS = 1000
LAST = TRAINING_STEPS - 1


def sampling_timesteps(steps: int) -> list[int]:
    """The rising timesteps that DDIM samples over: 1, 1 + c, 1 + 2c, ... with c = 1000 // steps.

    LDM's uniform grid, and diffusers' "leading" one with an offset of 1.
    """
    return [1 + place * (TRAINING_STEPS // steps) for place in range(steps)]


def inversion_timesteps(steps: int, convention: Convention) -> list[int]:
    """The rising timesteps whose states an inversion passes; the first is that of the picture itself.

    `styleid`: 1, 1 + c, ... up to below 1000, then 999 (encode_ddim of the authors' LDM code; one more than `steps`
    below 999 where `steps` does not divide 1000). `ddim` and `edit-friendly`: 0, then the sampling timesteps
    (DDIMInverseScheduler; the authors' code of arXiv:2304.06140).
    """
    if convention == "styleid":
        return [*range(1, TRAINING_STEPS, TRAINING_STEPS // steps), LAST]
    return [0, *sampling_timesteps(steps)]


def step_by_own_level(x: Tensor, denoised: Tensor, sigma: float, target: float) -> Tensor:
    """One Euler step from `sigma` to `target`, by what the network saw in `x` at `sigma`; DDIM in either direction."""
    return x + (x - denoised) * ((target - sigma) / sigma)


def seen_at_target(x: Tensor, sigma: float, target: float) -> Tensor:
    """What `step_by_target_level` shows the network: the same latent, taken for one at the level `target`."""
    return x * math.sqrt((1 + target**2) / (1 + sigma**2))


def step_by_target_level(
    x: Tensor, seen: Tensor, denoised: Tensor, sigma: float, target: float, predicts_v: bool
) -> Tensor:
    """One step from `sigma` to `target` by what the network found in `seen` at `target`: DDIMInverseScheduler's.

    The mirror image of a DDIM step. What the network predicts is kept (the noise, or v), not what is denoised.
    """
    if not predicts_v:
        return x + (seen - denoised) * ((target - sigma) / target)
    size = math.sqrt(1 + target**2)
    velocity = (seen / size**2 - denoised) * (size / target)
    kept, noise_share = 1 / math.sqrt(1 + sigma**2), sigma / math.sqrt(1 + sigma**2)
    latent = x * kept
    clean, noise = kept * latent - noise_share * velocity, kept * velocity + noise_share * latent
    return clean + target * noise
