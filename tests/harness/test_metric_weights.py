"""The converter keeps what a measuring node needs of a published file, and the node finds it there."""

from __future__ import annotations

from pathlib import Path

import comfy.utils  # noqa: F401  (puts ComfyUI on the path)
import pytest
import torch

from semblance.harness.metric_weights import convert, told
from semblance.host.evaluation.published import every_part
from semblance.host.evaluation.weights import WeightsFile
from semblance.tests.support.metric_weights import heads, inception, inception_trunk, network, put

PUBLISHED = {
    "alexnet": (lambda: network("alex"), ["the network of LPIPS alex"]),
    "vgg16": (lambda: network("vgg"), ["the network of LPIPS vgg"]),
    "squeezenet1_1": (lambda: network("squeeze"), ["the network of LPIPS squeeze"]),
    "heads": (lambda: heads("vgg"), ["the heads of LPIPS vgg"]),
    "vgg19": (lambda: network("vgg19"), ["the VGG-19 of CFSD"]),
    "pt_inception": (lambda: inception(1008), ["the Inception of FID, trained in TensorFlow"]),
    "art_inception": (lambda: dict(inception_trunk()), ["the Inception of ArtFID, trained on paintings"]),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_kept_is_found_again_and_nothing_else(tmp_path: Path, name: str) -> None:
    make, parts = PUBLISHED[name]
    made = make()
    written = convert(put(made, tmp_path, f"{name}.pth"), tmp_path / "out")
    assert written.name == f"{name}.safetensors" and str(written) in told(written)
    opened = WeightsFile(written)
    assert [part.what for part in every_part() if opened.lacks(part) is None] == parts
    assert {"classifier.6.bias", "fc.weight"} & set(opened.shapes) == set()
    (part,) = (part for part in every_part() if part.what in parts)
    assert all(torch.equal(tensor, made[key]) for key, tensor in opened.tensors_of(part).items())


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    file = put(heads("alex"), tmp_path, "alex.pth")
    assert [convert(file, tmp_path / "out").name for _ in range(2)] == ["alex.safetensors", "alex 2.safetensors"]


def test_a_file_that_no_node_uses_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="torchvision's Inception, trained on ImageNet's 1,000 classes, not the"):
        convert(put(inception(1000), tmp_path, "imagenet.pth"), tmp_path)
    with pytest.raises(ValueError, match="'other.pth' holds no network that the measuring nodes use"):
        convert(put({"a": torch.ones(2)}, tmp_path, "other.pth"), tmp_path)
