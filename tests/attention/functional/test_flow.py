"""The midpoint rule on flows whose states are known in closed form, beside a page of plain torch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from semblance.attention.functional.flow import flow_velocity, midpoint_step

START = torch.tensor([[0.7, -1.3, 2.0, 0.1]], dtype=torch.float64)


def velocity(x: Tensor, sigma: float) -> Tensor:
    """Of the flow x(sigma) = c * exp(sin(3 sigma)), which no rule of finite order follows exactly."""
    return 3 * math.cos(3 * sigma) * x


def exact(sigma: float) -> Tensor:
    return START * math.exp(math.sin(3 * sigma))


def walked(steps: int, start: float, end: float) -> Tensor:
    x, width = exact(start), (end - start) / steps
    for step in range(steps):
        x = midpoint_step(velocity, x, start + step * width, start + (step + 1) * width)
    return x


@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (1.0, 0.0)], ids=["to the noise", "to the picture"])
def test_the_error_falls_with_the_square_of_the_steps(start: float, end: float) -> None:
    errors = [float((walked(steps, start, end) - exact(end)).norm()) for steps in (160, 320, 640)]
    orders = [math.log2(coarse / fine) for coarse, fine in zip(errors, errors[1:], strict=False)]
    assert all(1.8 < order < 2.2 for order in orders), orders


def test_a_straight_flow_is_walked_exactly_whatever_the_steps() -> None:
    """x = (1 - sigma) * x0 + sigma * noise, the ideal of rectified flow."""
    clean, noise = torch.randn(2, 3, 16, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    straight = midpoint_step(lambda x, sigma: noise - clean, clean, 0.0, 1.0)
    assert torch.allclose(straight, noise, atol=1e-12)


def test_one_step_is_the_rule_written_out() -> None:
    sigma, target = 0.2, 0.6
    first = 3 * math.cos(3 * 0.2) * START
    middle = START + 0.2 * first
    expected = START + 0.4 * (3 * math.cos(3 * 0.4) * middle)
    assert torch.allclose(midpoint_step(velocity, START, sigma, target), expected, atol=1e-12)


def test_the_velocity_is_read_off_the_prediction_of_the_clean_latent() -> None:
    clean, noise = torch.randn(2, 1, 16, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for sigma in (0.01, 0.5, 1.0):
        x = (1 - sigma) * clean + sigma * noise
        assert torch.allclose(flow_velocity(x, clean, sigma), noise - clean, atol=1e-10)
