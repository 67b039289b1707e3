"""Random weights for a network that stands without any, at a scale that keeps signals alive through many layers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def random_weights(network: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """A state for `network`, which may be on the meta device: convolutions of He's scale, norms near the identity."""
    noise = torch.Generator().manual_seed(seed)
    weights: dict[str, Tensor] = {}
    for name, tensor in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        drawn = torch.randn(tensor.shape, generator=noise)
        if tensor.dim() > 1:
            weights[name] = drawn * math.sqrt(2 / tensor[0].numel())
        elif name.endswith(("bn.weight", "running_var")):
            weights[name] = (0.1 * drawn).exp()
        else:
            weights[name] = 0.1 * drawn
    return weights
