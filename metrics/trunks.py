"""Networks of torchvision as the metrics use them: some first layers, filled with weights that the user brings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torchvision import models  # pyright: ignore[reportMissingTypeStubs]

Network = TypeVar("Network", bound=nn.Module)


class Trunk(nn.Module):
    """The first layers of a network's `features`; gives out what the layers with these numbers make.

    Its weights have torchvision's names, `features.0.weight` and so on, up to the last of those layers.
    """

    def __init__(self, features: nn.Module, layers: Sequence[int]) -> None:
        super().__init__()
        self.features = nn.Sequential(*list(features.children())[: max(layers) + 1])
        self.layers = frozenset(layers)

    def forward(self, pictures: Tensor) -> list[Tensor]:
        """(pictures, 3, height, width) as the network was trained on -> (pictures, channels, h, w) for each layer."""
        given: list[Tensor] = []
        features = pictures
        for number, layer in enumerate(self.features):
            features = cast(Tensor, layer(features))
            if number in self.layers:
                given.append(features)
        return given


def alexnet(layers: Sequence[int]) -> Trunk:
    """AlexNet as torchvision has it, without weights."""
    return Trunk(without_weights(lambda: models.alexnet(weights=None)).features, layers)


def squeezenet(layers: Sequence[int]) -> Trunk:
    """SqueezeNet 1.1 as torchvision has it, without weights."""
    return Trunk(without_weights(lambda: models.squeezenet1_1(weights=None)).features, layers)


def vgg16(layers: Sequence[int]) -> Trunk:
    """VGG-16 as torchvision has it, without weights."""
    return Trunk(without_weights(lambda: models.vgg16(weights=None, init_weights=False)).features, layers)


def vgg19(layers: Sequence[int]) -> Trunk:
    """VGG-19 as torchvision has it, without weights."""
    return Trunk(without_weights(lambda: models.vgg19(weights=None, init_weights=False)).features, layers)


def without_weights(build: Callable[[], Network]) -> Network:
    """A network whose tensors have shapes and nothing else, so that no memory or time goes to parts that are cut."""
    with torch.device("meta"):
        return build()


def filled(network: Network, weights: Mapping[str, Tensor], name: str) -> Network:
    """The network with these weights in float32, for evaluation; further tensors among them are left out.

    They stay on the device they are on. Raises ValueError, beginning with `name`, where weights are missing or have
    another shape.
    """
    wanted = {key: tensor for key, tensor in network.state_dict().items() if not key.endswith("num_batches_tracked")}
    missing = [key for key in wanted if key not in weights]
    if missing:
        raise ValueError(
            f"{name}: {len(missing)} of {len(wanted)} tensors are missing, the first is '{missing[0]}'. "
            "The file is of another network, or was cut short. Get it again from where it is published."
        )
    for key, tensor in wanted.items():
        if weights[key].shape != tensor.shape:
            raise ValueError(
                f"{name}: '{key}' has the shape {tuple(weights[key].shape)}, expected {tuple(tensor.shape)}. "
                "The file is of another network. Choose the one that is published for this metric."
            )
    # Before they are assigned: a tensor that was loaded in inference mode takes no gradients.
    network.requires_grad_(False).eval()
    state = {key: weights[key].float() for key in wanted}
    broken = [key for key, tensor in state.items() if not bool(tensor.isfinite().all())]
    if broken:
        raise ValueError(f"{name}: '{broken[0]}' holds values that are not numbers. Get the file again.")
    counters = {key: torch.zeros((), dtype=torch.long) for key in network.state_dict() if key not in wanted}
    network.load_state_dict(state | counters, assign=True)
    return network
