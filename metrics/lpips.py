"""LPIPS v0.1: how different two pictures look (arXiv:1801.03924; https://github.com/richzhang/PerceptualSimilarity)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from .pictures import checked_pairs, checked_size
from .trunks import Trunk, alexnet, filled, squeezenet, vgg16

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Of ImageNet's colours in [-1, 1], by which pictures are normalised."""
TINY = 1e-10


@dataclass(frozen=True)
class Layout:
    """Which network compares, and where."""

    trunk: Callable[[Sequence[int]], Trunk]
    layers: tuple[int, ...]
    """Numbers of the layers of torchvision's `features`, each the ReLU at the end of a stage."""
    channels: tuple[int, ...]
    smallest: int
    """The shortest side of a picture, in pixels, of which the last layer still sees something."""


LAYOUTS = {
    "alex": Layout(alexnet, (1, 4, 7, 9, 11), (64, 192, 384, 256, 256), 31),
    "vgg": Layout(vgg16, (3, 8, 15, 22, 29), (64, 128, 256, 512, 512), 16),
    "squeeze": Layout(
        squeezenet,
        (1, 4, 7, 9, 10, 11, 12),
        (64, 128, 256, 384, 384, 512, 512),
        17,
    ),
}
"""By the names that the `lpips` package gives them."""


class LPIPS(nn.Module):
    """The distance between pictures by one network and its heads, a weight for each channel."""

    def __init__(self, name: str, trunk: Trunk, heads: Sequence[Tensor]) -> None:
        super().__init__()
        self.name = name
        self.trunk = trunk
        self.heads = nn.ParameterList([nn.Parameter(head, requires_grad=False) for head in heads])

    @classmethod
    def from_state(cls, weights: Mapping[str, Tensor], name: str) -> LPIPS:
        """The network `alex`, `vgg` or `squeeze`, with the weights of its trunk and heads.

        The trunk under torchvision's names (`features.0.weight`) or those of a saved LPIPS (`net.slice1.0.weight`),
        the heads as published (`lin0.model.1.weight`, (1, channels, 1, 1)). Raises ValueError for an unknown name,
        and where tensors are missing or have another shape.
        """
        weights = renamed(weights)
        if name not in LAYOUTS:
            raise ValueError(f"LPIPS has no network '{name}'. Choose one of: {', '.join(LAYOUTS)}.")
        layout = LAYOUTS[name]
        trunk = filled(layout.trunk(layout.layers), weights, f"The trunk of LPIPS {name}")
        return cls(name, trunk, [_head(weights, name, number) for number in range(len(layout.layers))])

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """The distance of each pair, float32 (pairs,) from 0 up; lower is more alike.

        Both are (pairs, 3, height, width) in [0, 1], of one size. Raises ValueError for what is not.
        """
        first, second = checked_pairs(first, second, "The first pictures", "The second pictures")
        checked_size(first, LAYOUTS[self.name].smallest, f"LPIPS {self.name}")
        seen, compared = (cast(list[Tensor], self.trunk(normalised(pictures))) for pictures in (first, second))
        return layer_distances(seen, compared, list(self.heads)).sum(dim=0)


def normalised(pictures: Tensor) -> Tensor:
    """Pictures in [0, 1] as the networks take them."""
    shift, scale = (pictures.new_tensor(color).view(3, 1, 1) for color in (SHIFT, SCALE))
    return (2 * pictures - 1 - shift) / scale


def layer_distances(first: Sequence[Tensor], second: Sequence[Tensor], heads: Sequence[Tensor]) -> Tensor:
    """The weighted squared differences of unit features, averaged over places: (layers, pairs).

    Features are (pairs, channels, height, width) for each layer, heads (channels,).
    """
    return torch.stack([_layer_distance(*layer) for layer in zip(first, second, heads, strict=True)])


def renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A saved LPIPS's names of its trunk as torchvision has them; other names stay."""
    return {trunk_name(key): tensor for key, tensor in weights.items()}


def trunk_name(key: str) -> str:
    """What torchvision calls a tensor of a saved LPIPS's trunk; other names stay."""
    return re.sub(r"^net\.slice\d+\.", "features.", key)


def _layer_distance(first: Tensor, second: Tensor, head: Tensor) -> Tensor:
    return ((_unit(first) - _unit(second)).square() * head.view(-1, 1, 1)).sum(dim=1).mean(dim=(1, 2))


def _unit(features: Tensor) -> Tensor:
    return features / (features.square().sum(dim=1, keepdim=True).sqrt() + TINY)


def _head(weights: Mapping[str, Tensor], name: str, number: int) -> Tensor:
    key, channels = f"lin{number}.model.1.weight", LAYOUTS[name].channels[number]
    if key not in weights:
        raise ValueError(
            f"The heads of LPIPS {name}: '{key}' is missing. A network's weights alone do not make LPIPS; add the "
            f"heads that are published as weights/v0.1/{name}.pth."
        )
    if weights[key].shape != (1, channels, 1, 1):
        raise ValueError(
            f"The heads of LPIPS {name}: '{key}' has the shape {tuple(weights[key].shape)}, expected "
            f"{(1, channels, 1, 1)}. They are of another network; choose those of {name}."
        )
    return weights[key].float().flatten()
