"""CFSD is that of StyleID's evaluation, as published and as the paper's formula has it, a chunk of rows at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models import vgg

from semblance.metrics.cfsd import CFSD, RELU3_1, similarity_divergence
from semblance.metrics.trunks import Trunk, filled, vgg16, vgg19
from semblance.tests.support.frozen_cases import furthest, load_reference
from semblance.tests.support.random_weights import random_weights

TENSORS, CASE = load_reference("metrics")
CONTENT, STYLISED = TENSORS["in.content"], TENSORS["in.stylised"]
UNIT_CONTENT, UNIT_STYLISED = TENSORS["cfsd.unit.feat_content"], TENSORS["cfsd.unit.feat_stylised"]


def tiny() -> CFSD:
    """On the small VGG of the frozen case."""
    weights = {key.removeprefix("vgg19_tiny."): tensor for key, tensor in TENSORS.items() if "vgg19_tiny" in key}
    widths = [len(weights[f"features.{layer}.bias"]) for layer in (0, 2, 5, 7, 10)]
    layers = vgg.make_layers([*widths[:2], "M", *widths[2:4], "M", *widths[4:]])
    return CFSD(filled(Trunk(layers, [RELU3_1]), weights, "The small VGG"))


def plain(content: Tensor, stylised: Tensor) -> Tensor:
    """The whole matrices at once, in float64."""

    def logarithm(features: Tensor) -> Tensor:
        rows = features.double().flatten(2).transpose(1, 2) / features.shape[1]
        return functional.log_softmax(rows @ rows.transpose(1, 2), dim=2)

    kept, found = logarithm(content), logarithm(stylised)
    return (kept.exp() * (kept - found)).sum(dim=(1, 2))


def test_features_and_distances_are_the_authors() -> None:
    metric = tiny()
    assert furthest(metric.features(CONTENT), TENSORS["cfsd.feat_content"]) <= 1e-5
    assert furthest(metric.features(STYLISED), TENSORS["cfsd.feat_stylised"]) <= 1e-5
    found = metric(STYLISED, CONTENT)
    official, precise, paper = CASE["cfsd_official"], CASE["cfsd_float64"], CASE["cfsd_paper_mean"]
    images = [f"image{number}" for number in range(len(CONTENT))]
    assert found.tolist() == pytest.approx([official[image] for image in images], rel=5e-3)
    assert found.tolist() == pytest.approx([precise[image] for image in images], rel=1e-4)
    assert found.mean() == pytest.approx(official["batch_of_2"], rel=5e-3)
    assert metric.per_place(STYLISED, CONTENT).tolist() == pytest.approx([paper[image] for image in images], rel=5e-3)


def test_the_content_is_what_the_stylised_picture_is_measured_by() -> None:
    found = similarity_divergence(UNIT_CONTENT, UNIT_STYLISED).item()
    assert found == pytest.approx(CASE["cfsd_unit_official"], rel=1e-4)
    assert found == pytest.approx(CASE["cfsd_float64"]["unit"], rel=1e-6)
    assert found / UNIT_CONTENT[0, 0].numel() == pytest.approx(CASE["cfsd_unit_paper_mean"], rel=1e-4)
    swapped = similarity_divergence(UNIT_STYLISED, UNIT_CONTENT).item()
    assert swapped == pytest.approx(CASE["cfsd_float64"]["unit_swapped_arguments"], rel=1e-6)


@pytest.mark.parametrize("rows", [1, 7, 119, 120, 5000])
def test_chunks_of_rows_change_nothing(rows: int) -> None:
    found = similarity_divergence(UNIT_CONTENT, UNIT_STYLISED, chunk_bytes=rows * 8 * 120)
    assert torch.allclose(found, plain(UNIT_CONTENT, UNIT_STYLISED), rtol=1e-6, atol=0)
    assert similarity_divergence(UNIT_CONTENT, UNIT_CONTENT, chunk_bytes=rows * 8 * 120).item() == 0


def test_each_chunk_of_rows_calls_back_and_may_stop_the_work() -> None:
    calls: list[int] = []
    similarity_divergence(UNIT_CONTENT, UNIT_STYLISED, 7 * 8 * 120, at_each_chunk=lambda: calls.append(1))
    assert len(calls) == math.ceil(120 / 7)

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny().per_place(STYLISED, CONTENT, stop)


def test_no_tensor_is_larger_than_a_chunk() -> None:
    class Largest(TorchDispatchMode):
        found = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                self.found = max(self.found, result.numel() * result.element_size())
            return result

    features = torch.rand(2, 4, 30, 40, generator=torch.Generator().manual_seed(0))
    with Largest() as largest:
        similarity_divergence(features, features.flip(1), chunk_bytes=96_000)
    assert 48_000 < largest.found <= 96_000


def test_the_real_network_is_torchvisions_to_relu3_1() -> None:
    weights = random_weights(vgg19([RELU3_1]))
    unused = {"features.28.weight": torch.zeros(1), "classifier.0.weight": torch.zeros(1)}
    metric = CFSD.from_state(weights | unused)
    with torch.device("meta"):
        layers = vgg.make_layers(vgg.cfgs["E"])[:12]
    layers.load_state_dict({key.removeprefix("features."): tensor for key, tensor in weights.items()}, assign=True)
    content, stylised = (
        torch.rand(2, 3, 21, 30, generator=torch.Generator().manual_seed(seed)) for seed in range(2)
    )  # of a size that no pooling divides
    mean, deviation = (torch.tensor(color).view(3, 1, 1) for color in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    expected = plain(*(layers((picture - mean) / deviation) for picture in (content, stylised)))
    assert metric.features(content).shape == (2, 256, 5, 7)
    assert torch.allclose(metric(stylised, content), expected, rtol=1e-4, atol=0)
    assert torch.allclose(metric.per_place(stylised, content), expected / 35, rtol=1e-4, atol=0)


def test_a_vgg_16_is_refused_though_its_first_layers_have_the_same_shapes() -> None:
    weights = random_weights(vgg16([28]))
    shapes = {key: tensor.shape for key, tensor in vgg19([RELU3_1]).state_dict().items()}
    assert {key: weights[key].shape for key in shapes} == shapes
    with pytest.raises(ValueError, match="defined by VGG-19, but these weights are of VGG-16"):
        CFSD.from_state(weights)


def test_what_is_no_pair_of_pictures_or_no_vgg_is_refused() -> None:
    metric = tiny()
    with pytest.raises(ValueError, match="The content pictures hold values that are not numbers"):
        metric(STYLISED, CONTENT * math.nan)
    with pytest.raises(ValueError, match="stylised pictures are 32 x 24 and the content pictures are 30 x 24 pixels"):
        metric(STYLISED, CONTENT[..., :30])
    with pytest.raises(ValueError, match="32 x 3 pixels, but CFSD needs at least 4"):
        metric(STYLISED[:, :, :3], CONTENT[:, :, :3])
    with pytest.raises(
        ValueError, match=r"The VGG-19 for CFSD: 1 of 10 tensors are missing, the first is 'features\.5"
    ):
        weights = random_weights(vgg19([RELU3_1]))
        CFSD.from_state({key: tensor for key, tensor in weights.items() if key != "features.5.bias"})
