"""The two Inception v3 whose pooled features FID and ArtFID compare, on torchvision's blocks.

FID's was trained in TensorFlow in 2015 and differs from torchvision's in its pooling
(https://github.com/mseitzer/pytorch-fid); ArtFID's was trained on paintings
(https://github.com/matthias-wright/art-fid). Neither is torchvision's own, which is of ImageNet's 1,000 classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, cast

from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.inception import (  # pyright: ignore[reportMissingTypeStubs]
    BasicConv2d,
    Inception3,
    InceptionA,
    InceptionC,
    InceptionE,
)

from .pictures import checked, checked_size
from .trunks import filled, without_weights

Kind = Literal["FID", "ArtFID", "ImageNet"]

WIDTH = 2048
SIDE = 299
"""Pixels to which FID resizes every picture."""
SMALLEST = 75
"""The shortest side, in pixels, of which the last block still sees something."""
TENSORFLOW_CLASSES = 1008


class Inception(nn.Module):
    """A picture's pooled features, by which sets of pictures are compared."""

    def __init__(self, trunk: nn.Module, tensorflow: bool) -> None:
        super().__init__()
        self.trunk = trunk
        self.tensorflow = tensorflow
        """Whether pictures are resized and scaled as TensorFlow's network takes them; else they go in as they are."""

    @classmethod
    def for_fid(cls, weights: Mapping[str, Tensor]) -> Inception:
        """With the weights published as `pt_inception-2015-12-05`. Raises ValueError for those of another network."""
        _check_kind(weights, "FID", "pt_inception-2015-12-05")
        trunk = without_weights(_tensorflow_trunk)
        return cls(filled(trunk, weights, "The Inception for FID"), tensorflow=True)

    @classmethod
    def for_art_fid(cls, weights: Mapping[str, Tensor]) -> Inception:
        """With the weights published as `art_inception`. Raises ValueError for those of another network.

        It takes pictures of any size, and its numbers depend on it: StyleID's evaluation first resizes the shorter
        side to 512.
        """
        _check_kind(weights, "ArtFID", "art_inception")
        trunk = without_weights(_trunk)
        return cls(filled(trunk, weights, "The Inception for ArtFID"), tensorflow=False)

    def forward(self, pictures: Tensor) -> Tensor:
        """(pictures, 3, height, width) in [0, 1] -> features (pictures, 2048), float32.

        Raises ValueError for what are no pictures, and below 75 pixels on a side where they are not resized.
        """
        pictures = checked(pictures)
        if self.tensorflow:
            size = (SIDE, SIDE)
            # Without antialiasing, as in pytorch-fid; other resizing gives other numbers.
            pictures = 2 * functional.interpolate(pictures, size=size, mode="bilinear", align_corners=False) - 1
        checked_size(pictures, SMALLEST, "ArtFID")
        return cast(Tensor, self.trunk(pictures))


def kind_of(weights: Mapping[str, Tensor]) -> Kind | None:
    """Which Inception v3 these weights are of, by its classifier; none where they are of no known one.

    The biases of the classifiers, `fc.bias` or `fc1.bias`, are enough: they are all that tells the networks apart.
    """
    if "Mixed_7c.branch_pool.conv.weight" not in weights:
        return None
    if "fc1.bias" in weights or "fc1.weight" in weights:
        return "ArtFID"
    classes = next((len(weights[key]) for key in ("fc.bias", "fc.weight") if key in weights), 0)
    return {TENSORFLOW_CLASSES: "FID", 1000: "ImageNet"}.get(classes)  # pyright: ignore[reportReturnType]


class AverageInside(BasicConv2d):
    """Follows an average pooling and takes back the padding's zeros, which TensorFlow does not count."""

    def forward(self, x: Tensor) -> Tensor:
        share = functional.avg_pool2d(x.new_ones(1, 1, *x.shape[2:]), kernel_size=3, stride=1, padding=1)
        return super().forward(x / share)


class LastBlock(InceptionE):
    """Pools by the maximum where torchvision's takes the average."""

    def _forward(self, x: Tensor) -> list[Tensor]:
        outputs = super()._forward(x)
        pooled = functional.max_pool2d(x, kernel_size=3, stride=1, padding=1)
        outputs[-1] = cast(Tensor, self.branch_pool(pooled))
        return outputs


def _trunk() -> Inception3:
    """torchvision's network up to its pooled features."""
    network = Inception3(aux_logits=False, init_weights=False)
    network.add_module("fc", nn.Identity())
    return network


def _tensorflow_trunk() -> Inception3:
    network = _trunk()
    for block in network.children():
        if isinstance(block, InceptionA | InceptionC | InceptionE):
            convolution = cast(nn.Conv2d, block.branch_pool.conv)
            block.branch_pool = AverageInside(convolution.in_channels, convolution.out_channels, kernel_size=1)
    network.Mixed_7c = LastBlock(1280 + 768)
    return network


def _check_kind(weights: Mapping[str, Tensor], wanted: Kind, file: str) -> None:
    found = kind_of(weights)
    bare = wanted == "ArtFID" and "Mixed_7c.branch_pool.conv.weight" in weights
    bare = bare and not any(name.partition(".")[0] in ("fc", "fc1", "AuxLogits") for name in weights)
    if found == wanted or bare:  # the authors load theirs without its classifiers, which may not be in the file
        return
    what = {
        "FID": "the Inception of FID, trained in TensorFlow",
        "ArtFID": "the Inception of ArtFID, trained on paintings",
        "ImageNet": "torchvision's Inception, trained on ImageNet's 1,000 classes",
        None: "no Inception that is known, or its classifier was left out",
    }[found]
    raise ValueError(
        f"{wanted} is defined by one network, published as {file}, but these weights are of {what}. Its numbers would "
        f"compare with nobody's. Choose {file}."
    )
