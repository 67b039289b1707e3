"""LPIPS is that of the `lpips` package and of torchmetrics, on trunks of the same random weights."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import lpips
import pytest
import torch
import torchvision
from torch import Tensor
from torchmetrics.functional.image.lpips import _LPIPS

from semblance.metrics.lpips import LAYOUTS, LPIPS, layer_distances, normalised
from semblance.tests.support.frozen_cases import furthest, load_reference
from semblance.tests.support.random_weights import random_weights

TENSORS, CASE = load_reference("metrics")
NAMES = sorted(LAYOUTS)
TORCHVISION = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}


def trunk_weights(name: str) -> dict[str, Tensor]:
    return random_weights(LAYOUTS[name].trunk(LAYOUTS[name].layers))


def published_heads(name: str) -> dict[str, Tensor]:
    path = Path(lpips.__file__).parent / "weights" / "v0.1" / f"{name}.pth"
    return torch.load(path, map_location="cpu", weights_only=True)


def pictures(seed: int, height: int = 40, width: int = 52) -> Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_the_distance_is_that_of_lpips_and_of_torchmetrics(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = trunk_weights(name)
    ours = LPIPS.from_state(weights | published_heads(name), name)
    # What both packages ask torchvision for, here with our random weights and without the unused classifier.
    monkeypatch.setattr(
        torchvision.models, TORCHVISION[name], lambda **asked: SimpleNamespace(features=ours.trunk.features)
    )
    first, second = pictures(0), pictures(1)
    found = ours(first, second)
    assert found.shape == (2,) and found.min() > 0.01
    theirs = lpips.LPIPS(net=name, pnet_rand=True, verbose=False)
    assert furthest(found, theirs(first, second, normalize=True).flatten()) <= 1e-6
    assert furthest(found, _LPIPS(net=name, pnet_rand=True)(first, second, normalize=True).flatten()) <= 1e-6


def test_the_distance_of_given_features_is_the_authors() -> None:
    layers = len(LAYOUTS[CASE["lpips_net"]].layers)
    first, second = ([TENSORS[f"lpips.feat{side}.{layer}"].float() for layer in range(layers)] for side in (0, 1))
    heads = [TENSORS[f"lpips.lin{layer}.weight"].flatten() for layer in range(layers)]
    found = layer_distances(first, second, heads)
    expected = torch.stack([TENSORS[f"lpips.per_layer.{layer}"].flatten() for layer in range(layers)])
    assert furthest(found, expected) <= 1e-5
    assert furthest(found.sum(dim=0), TENSORS["lpips.value"].flatten()) <= 1e-5
    unweighted = layer_distances(first, second, [torch.ones_like(head) for head in heads])
    assert furthest(unweighted.sum(dim=0), TENSORS["lpips.value_without_lin"].flatten()) <= 1e-5


def test_pictures_are_scaled_as_the_authors_scale_them() -> None:
    assert furthest(normalised((TENSORS["lpips.in0"] + 1) / 2), TENSORS["lpips.scaled0"]) <= 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_is_no_distance_from_itself_down_to_the_smallest(name: str) -> None:
    metric = LPIPS.from_state(trunk_weights(name) | published_heads(name), name)
    smallest = LAYOUTS[name].smallest
    picture = pictures(0, smallest, smallest)
    assert metric(picture, picture).tolist() == [0, 0]
    assert metric(picture, pictures(1, smallest, smallest)).min() > 0
    less = picture[:, :, 1:]
    with pytest.raises(ValueError, match=f"are {smallest} x {smallest - 1} pixels, but LPIPS {name} needs at least"):
        metric(less, less)
    with pytest.raises(RuntimeError):  # of torch, where the refusal is not
        metric.trunk(less)


def test_a_saved_lpips_and_half_precision_weights_are_taken() -> None:
    weights = {key: tensor.half() for key, tensor in (trunk_weights("squeeze") | published_heads("squeeze")).items()}
    saved = {key.replace("features.", "net.slice1.", 1): tensor for key, tensor in weights.items()}
    metric = LPIPS.from_state(saved | {"classifier.1.weight": torch.zeros(1)}, "squeeze")
    assert (
        furthest(metric(pictures(0), pictures(1)), LPIPS.from_state(weights, "squeeze")(pictures(0), pictures(1))) == 0
    )
    assert not any(parameter.requires_grad for parameter in metric.parameters())


def test_weights_of_another_network_or_cut_short_are_refused() -> None:
    weights = trunk_weights("squeeze") | published_heads("squeeze")
    with pytest.raises(ValueError, match="no network 'resnet'. Choose one of: alex, vgg, squeeze"):
        LPIPS.from_state(weights, "resnet")
    with pytest.raises(ValueError, match=r"The trunk of LPIPS alex: \d+ of 10 tensors are missing"):
        LPIPS.from_state(weights, "alex")
    with pytest.raises(ValueError, match=r"'lin6.model.1.weight' is missing.*published as weights/v0.1/squeeze.pth"):
        LPIPS.from_state({key: tensor for key, tensor in weights.items() if "lin6" not in key}, "squeeze")
    with pytest.raises(ValueError, match=r"'lin0.model.1.weight' has the shape \(1, 9, 1, 1\)"):
        LPIPS.from_state(weights | {"lin0.model.1.weight": torch.zeros(1, 9, 1, 1)}, "squeeze")
    with pytest.raises(ValueError, match=r"'features.0.weight' has the shape \(64, 3, 11, 11\), expected"):
        LPIPS.from_state(weights | {"features.0.weight": torch.zeros(64, 3, 11, 11)}, "squeeze")
    with pytest.raises(ValueError, match="'features.0.bias' holds values that are not numbers"):
        LPIPS.from_state(weights | {"features.0.bias": torch.full((64,), math.nan)}, "squeeze")


def test_pictures_that_are_none_or_do_not_pair_up_are_refused() -> None:
    metric = LPIPS.from_state(trunk_weights("squeeze") | published_heads("squeeze"), "squeeze")
    picture = pictures(0)
    for broken, message in [
        (picture * math.nan, "The second pictures hold values that are not numbers"),
        (torch.where(picture > 0.5, picture, math.inf), "not numbers"),
        (picture[:1], "The first pictures are 2 and the second pictures are 1"),
        (pictures(1, 40, 44), "are 52 x 40 and the second pictures are 44 x 40 pixels"),
        (picture.movedim(1, 3), r"\(2, 40, 52, 3\); a metric needs \(pictures, 3, height, width\)"),
        (torch.cat([picture, picture[:, :1]], dim=1), "without transparency"),
        (picture[:0], "are empty"),
        (picture * 255, "a metric needs \\[0, 1\\]. Scale them"),
        ((picture * 255).byte(), "whole numbers"),
    ]:
        with pytest.raises(ValueError, match=message):
            metric(picture, broken)
