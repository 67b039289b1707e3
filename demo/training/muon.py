"""Muon for matrices, Adam for the rest, as one optimizer.

Muon (Keller Jordan, https://kellerjordan.github.io/posts/muon) makes each matrix's averaged gradient orthogonal, by
five steps of a Newton-Schulz iteration, so that no direction of it is learnt slower than another.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """`matrices` (of two dimensions or more: all but the first are one) by Muon, `rest` by Adam.

    A group's rate is `lr` times its `factor`: Muon's steps have a spectral norm of `factor` times `lr`. The iteration
    runs in `dtype`; bfloat16 is enough for it.
    """

    def __init__(
        self,
        matrices: Iterable[Tensor],
        rest: Iterable[Tensor],
        lr: float,
        factor: float = 10.0,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        dtype: torch.dtype = torch.float32,
    ) -> None:
        groups = [
            {"params": list(matrices), "factor": factor, "orthogonal": True},
            {"params": list(rest), "factor": 1.0, "orthogonal": False},
        ]
        super().__init__(groups, {"lr": lr, "momentum": momentum, "betas": betas})
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            rate = group["lr"] * group["factor"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if group["orthogonal"]:
                    direction = self._orthogonal(parameter, parameter.grad, group["momentum"])
                else:
                    direction = self._adam(parameter, *group["betas"])
                parameter.add_(direction, alpha=-rate)

    def _orthogonal(self, parameter: Tensor, gradient: Tensor, momentum: float) -> Tensor:
        state = self.state[parameter]
        average = state.setdefault("average", torch.zeros_like(parameter))
        average.lerp_(gradient, 1 - momentum)
        matrix = orthogonalised(gradient.lerp(average, momentum).flatten(1).to(self._dtype)).to(parameter)
        return matrix.view_as(parameter) * max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5

    def _adam(self, parameter: Tensor, first: float, second: float, eps: float = 1e-8) -> Tensor:
        state = self.state[parameter]
        steps = state["steps"] = state.get("steps", 0) + 1
        mean = state.setdefault("mean", torch.zeros_like(parameter))
        square = state.setdefault("square", torch.zeros_like(parameter))
        mean.lerp_(parameter.grad, 1 - first)
        square.mul_(second).addcmul_(parameter.grad, parameter.grad, value=1 - second)
        deviation = (square / (1 - second**steps)).sqrt().add_(eps)
        return mean / (1 - first**steps) / deviation


def orthogonalised(matrix: Tensor, steps: int = 5) -> Tensor:
    """The matrix (rows, columns) with its singular values brought near one, between 0.7 and 1.2."""
    a, b, c = _COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    matrix = matrix.T if tall else matrix
    matrix = matrix / matrix.norm().clamp_min(1e-7)
    for _ in range(steps):
        gram = matrix @ matrix.T
        matrix = a * matrix + (b * gram + c * gram @ gram) @ matrix
    return matrix.T if tall else matrix
