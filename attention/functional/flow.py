"""Rectified flow (arXiv:2209.03003): the velocity of a state, and the midpoint rule along it.

A state is x = (1 - sigma) * x0 + sigma * noise, and the network's velocity is v = dx / dsigma. The rule evaluates v at
the start of a step for the middle, and v at the middle for the whole step. Its error falls with the square of the
step, where that of Euler's falls with the step alone. That pictures are inverted by it is our choice: no official code
exists for StyleID on flow models. Tensors are (images, channels, ...).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Velocity = Callable[[Tensor, float], Tensor]
"""The velocity of a state at a noise level."""


def flow_velocity(x: Tensor, denoised: Tensor, sigma: float) -> Tensor:
    """The velocity whose prediction of the clean latent is `denoised`. `sigma` is above 0."""
    return (x - denoised) / sigma


def midpoint_step(velocity: Velocity, x: Tensor, sigma: float, target: float) -> Tensor:
    """One step from `sigma` to `target`, in either direction, by two evaluations of `velocity`."""
    middle = (sigma + target) / 2
    halfway = x + velocity(x, sigma) * (middle - sigma)
    return x + velocity(halfway, middle) * (target - sigma)
