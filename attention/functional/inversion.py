"""DDIM and its inversion (arXiv:2010.02502): ladders of timesteps, and single steps between noise levels.

Steps work on x = x0 + sigma * noise, ComfyUI's scale. The input of the UNet is x / sqrt(1 + sigma^2). `denoised` is the
network's prediction of x0. Tensors are (images, channels, height, width).
"""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

DDIMConvention = Literal["styleid", "ddim"]
Convention = Literal["styleid", "ddim", "edit-friendly", "midpoint"]
DDIM_CONVENTIONS: tuple[DDIMConvention, ...] = ("styleid", "ddim")
MIDPOINT: Convention = "midpoint"
"""The convention of flow models, which is ours: the midpoint rule of `flow.py` over ComfyUI's *simple* schedule."""
CONVENTIONS: tuple[Convention, ...] = (*DDIM_CONVENTIONS, "edit-friendly", MIDPOINT)
TRAINING_STEPS = 1000
LAST = TRAINING_STEPS - 1


def sampling_timesteps(steps: int) -> list[int]:
    """The rising timesteps of DDIM sampling: 1, 1 + c, 1 + 2c, ... with c = 1000 // steps.

    LDM's uniform grid, and diffusers' "leading" one with an offset of 1.
    """
    return [1 + index * (TRAINING_STEPS // steps) for index in range(steps)]


def inversion_timesteps(steps: int, convention: Convention) -> list[int]:
    """The rising timesteps of an inversion; the first is that of the picture itself.

    `styleid`: 1, 1 + c, ... below 1000, then 999, as encode_ddim of the authors' LDM code; if `steps` does not divide
    1000, there may be `steps` + 1 of them before 999. `ddim` and `edit-friendly`: 0, then the sampling timesteps, as
    DDIMInverseScheduler and the authors' code of arXiv:2304.06140.
    """
    if convention == "styleid":
        return [*range(1, TRAINING_STEPS, TRAINING_STEPS // steps), LAST]
    return [0, *sampling_timesteps(steps)]


def ddim_step(x: Tensor, denoised: Tensor, sigma: float, target: float) -> Tensor:
    """One DDIM step from `sigma` to `target`, in either direction: an Euler step by the prediction at `sigma`."""
    return x + (x - denoised) * ((target - sigma) / sigma)


def ddim_inverse_input(x: Tensor, sigma: float, target: float) -> Tensor:
    """The `seen` of `ddim_inverse_step`: `x` at `sigma` with the same UNet input, but labelled as of level `target`."""
    return x * math.sqrt((1 + target**2) / (1 + sigma**2))


def ddim_inverse_step(
    x: Tensor, seen: Tensor, denoised: Tensor, sigma: float, target: float, predicts_v: bool
) -> Tensor:
    """One step from `sigma` up to `target` by the prediction for `seen` at `target`, as in DDIMInverseScheduler.

    `seen` comes from `ddim_inverse_input` and `denoised` is the prediction for it. The network's raw output (noise, or
    v if `predicts_v`) is recovered from the two and applied to `x`.
    """
    if not predicts_v:
        return x + (seen - denoised) * ((target - sigma) / target)
    size = math.sqrt(1 + target**2)
    velocity = (seen / size**2 - denoised) * (size / target)
    clean_part, noise_part = 1 / math.sqrt(1 + sigma**2), sigma / math.sqrt(1 + sigma**2)
    latent = x * clean_part
    clean, noise = clean_part * latent - noise_part * velocity, clean_part * velocity + noise_part * latent
    return clean + target * noise
