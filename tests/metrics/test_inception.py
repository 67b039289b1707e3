"""The features of FID's Inception are torch-fidelity's, those of ArtFID's are torchvision's, on random weights."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from semblance.metrics.inception import Inception, kind_of
from semblance.metrics.trunks import without_weights
from semblance.tests.support.random_weights import random_weights


def weights(**classifiers: int) -> dict[str, Tensor]:
    """Random ones of an Inception v3 with classifiers by name, of which the biases are enough to tell it."""
    network = without_weights(lambda: torchvision.models.inception.Inception3(aux_logits=False, init_weights=False))
    trunk = {key: tensor for key, tensor in random_weights(network).items() if not key.startswith("fc.")}
    return trunk | {f"{name}.bias": torch.zeros(classes) for name, classes in classifiers.items()}


def picture(height: int, width: int) -> Tensor:
    """Of the 256 values that a byte scaled by 1 / 256 takes, (1, 3, height, width)."""
    return torch.randint(256, (1, 3, height, width), generator=torch.Generator().manual_seed(0)) / 256


@pytest.mark.slow
def test_features_for_fid_are_those_of_torch_fidelity(tmp_path: Path) -> None:
    state = weights(fc=1008)
    torch.save(state | {"fc.weight": torch.zeros(1008, 2048)}, tmp_path / "inception.pth")
    theirs = FeatureExtractorInceptionV3(
        "random", ["2048"], feature_extractor_weights_path=str(tmp_path / "inception.pth")
    )
    # torch-fidelity takes (byte - 128) / 128: our 2x - 1 of byte / 256. At 299 pixels neither resizes.
    seen = picture(299, 299)
    (expected,) = theirs((seen * 256).byte())
    found = Inception.for_fid(state)(seen)
    assert found.shape == (1, 2048)
    assert float((found - expected).norm() / expected.norm()) <= 1e-5
    # torchvision's own pooling is another network.
    plain = Inception.for_art_fid(weights(fc1=5, fc2=7))(2 * seen - 1)
    assert float((plain - expected).norm() / expected.norm()) > 1e-2


def test_features_for_art_fid_are_torchvisions_of_the_picture_as_it_is() -> None:
    state = weights(fc1=5, fc2=7)
    network = without_weights(lambda: torchvision.models.inception.Inception3(aux_logits=False, init_weights=False))
    network.load_state_dict(
        state | {"fc.weight": torch.eye(2048)[:1000], "fc.bias": torch.zeros(1000)}, assign=True, strict=False
    )
    seen = picture(80, 91)
    found = Inception.for_art_fid(state)(seen)
    assert found.shape == (1, 2048)
    assert torch.allclose(found[:, :1000], network.eval()(seen), rtol=1e-5, atol=1e-5)


def test_pictures_for_fid_are_resized_to_299_without_antialiasing_and_scaled() -> None:
    prepare = Inception(nn.Identity(), tensorflow=True)
    large = picture(598, 897)
    halves = large.unflatten(2, (299, 2)).mean(dim=3)  # bilinear at the middle between two rows
    assert torch.allclose(prepare(large), 2 * halves.unflatten(3, (299, 3))[..., 1] - 1, rtol=0, atol=1e-5)
    assert prepare(picture(4, 5)).shape == (1, 3, 299, 299)
    as_it_is = Inception(nn.Identity(), tensorflow=False)
    assert torch.equal(as_it_is(picture(80, 90)), picture(80, 90))


def test_the_networks_are_told_apart_by_their_classifiers() -> None:
    mark = {"Mixed_7c.branch_pool.conv.weight": torch.zeros(192, 2048, 1, 1)}
    assert kind_of(mark | {"fc.bias": torch.zeros(1008)}) == "FID"
    assert kind_of(mark | {"fc.weight": torch.zeros(1008, 2048)}) == "FID"
    assert kind_of(mark | {"fc1.weight": torch.zeros(9, 2048), "fc2.weight": torch.zeros(9, 2048)}) == "ArtFID"
    assert kind_of(mark | {"fc.weight": torch.zeros(1000, 2048)}) == "ImageNet"
    assert kind_of(mark) is None
    assert kind_of({"fc.bias": torch.zeros(1008)}) is None


def test_an_inception_of_another_kind_is_refused() -> None:
    with pytest.raises(
        ValueError, match="published as pt_inception-2015-12-05, but these weights are of torchvision's"
    ):
        Inception.for_fid(weights(fc=1000))
    with pytest.raises(ValueError, match="are of the Inception of FID, trained in TensorFlow.*Choose art_inception"):
        Inception.for_art_fid(weights(fc=1008))
    with pytest.raises(ValueError, match="no Inception that is known, or its classifier was left out"):
        Inception.for_fid(weights())
    cut = {key: tensor for key, tensor in weights(fc=1008).items() if not key.startswith("Mixed_5d")}
    with pytest.raises(ValueError, match=r"The Inception for FID: \d+ of \d+ tensors are missing.*'Mixed_5d"):
        Inception.for_fid(cut)


def test_pictures_that_are_none_or_too_small_are_refused() -> None:
    prepare, as_it_is = (Inception(nn.Identity(), tensorflow=tensorflow) for tensorflow in (True, False))
    for network in (prepare, as_it_is):
        with pytest.raises(ValueError, match="not numbers"):
            network(picture(80, 80) * math.nan)
    with pytest.raises(ValueError, match="80 x 74 pixels, but ArtFID needs at least 75"):
        as_it_is(picture(74, 80))
