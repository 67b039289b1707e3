"""Random weights in the layouts in which those of the measuring networks are published."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torchvision import models as torchvision_models

from semblance.metrics.lpips import LAYOUTS
from semblance.metrics.trunks import without_weights

Weights = dict[str, Tensor]
SLICES = {"alex": (2, 5, 8, 10, 12), "vgg": (4, 9, 16, 23, 30), "squeeze": (2, 5, 8, 10, 11, 12, 13)}
"""Where each slice of a saved LPIPS ends, by the layers of torchvision's `features`."""


def random_weights(shapes: dict[str, torch.Size], seed: int = 0) -> Weights:
    """Weights whose features neither vanish nor explode."""
    generator = torch.Generator().manual_seed(seed)
    return {name: _random(name, shape, generator) for name, shape in shapes.items()}


def network(name: str, seed: int = 0) -> Weights:
    """The convolutions that torchvision's file of a network holds, with one tensor of its classifier."""
    build = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1", "vgg19": "vgg19"}[name]
    whole = without_weights(lambda: getattr(torchvision_models, build)(weights=None)).state_dict()
    features = {key: tensor.shape for key, tensor in whole.items() if key.startswith("features.")}
    return random_weights(features, seed) | {"classifier.6.bias": torch.zeros(1000)}


def heads(name: str, seed: int = 1) -> Weights:
    """The heads of LPIPS as the `lpips` package ships them; no weight of theirs is below 0."""
    shapes = {f"lin{place}.model.1.weight": (1, size, 1, 1) for place, size in enumerate(LAYOUTS[name].channels)}
    generator = torch.Generator().manual_seed(seed)
    return {key: torch.rand(shape, generator=generator) for key, shape in shapes.items()}


def saved_lpips(name: str) -> Weights:
    """Network and heads in one file, as a saved LPIPS calls them."""
    found: Weights = {"scaling_layer.shift": torch.zeros(1, 3, 1, 1), "scaling_layer.scale": torch.ones(1, 3, 1, 1)}
    for key, tensor in network(name).items():
        if key.startswith("features."):
            layer = int(key.split(".")[1])
            slice_number = 1 + next(place for place, end in enumerate(SLICES[name]) if layer < end)
            found[key.replace("features.", f"net.slice{slice_number}.")] = tensor
    return found | heads(name)


@cache
def inception_trunk(seed: int = 0) -> Weights:
    """Inception v3 without a classifier, as ArtFID's may be published. Not to be changed: it is made once."""
    whole = without_weights(
        lambda: torchvision_models.inception_v3(weights=None, aux_logits=False, init_weights=False)
    ).state_dict()
    return random_weights({key: tensor.shape for key, tensor in whole.items() if not key.startswith("fc.")}, seed)


def inception(classes: int) -> Weights:
    """Inception v3 with a classifier of so many classes: 1008 as FID's, 1000 as torchvision's."""
    return inception_trunk() | {"fc.weight": torch.zeros(classes, 2048), "fc.bias": torch.zeros(classes)}


def put(weights: Weights, folder: Path, name: str) -> Path:
    """Writes a file of weights, of the kind that its ending says."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    if path.suffix == ".safetensors":
        save_file({key: tensor.contiguous() for key, tensor in weights.items()}, path)
    else:
        torch.save(weights, path)
    return path


def _random(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    if name.endswith("num_batches_tracked"):
        return torch.zeros((), dtype=torch.long)
    if name.endswith("running_var") or (".bn." in name and name.endswith("weight")):
        return 0.5 + torch.rand(shape, generator=generator)
    if len(shape) < 2:
        return 0.1 * torch.randn(shape, generator=generator)
    return torch.randn(shape, generator=generator) * math.sqrt(2 / math.prod(shape[1:]))
