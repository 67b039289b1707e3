"""Random weights that depend on a parameter's name and the seed only, not on the order of creation."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

Shapes = Mapping[str, tuple[int, ...]]


def seeded_tensor(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Noise scaled so that activations keep their size: norms near one, biases small, matrices by their fan-in."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
    noise = torch.randn(shape, generator=generator)
    if len(shape) > 1:
        return noise / math.sqrt(math.prod(shape[1:]))
    return 1.0 + 0.1 * noise if name.endswith("weight") else 0.05 * noise


def seeded_state_dict(shapes: Shapes, seed: int) -> dict[str, Tensor]:
    return {name: seeded_tensor(name, shape, seed) for name, shape in shapes.items()}


def seed_weights(module: nn.Module, seed: int) -> None:
    """Fills every parameter of `module`; ComfyUI's layers come with raw memory in them."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(seeded_tensor(name, tuple(parameter.shape), seed))
