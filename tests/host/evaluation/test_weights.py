"""Weights are found by the shapes of their tensors, whatever a file is called, and what is wrong is said."""

from __future__ import annotations

import re
from pathlib import Path

import lpips
import pytest
import torch
from torch import Tensor, nn

from semblance.host.evaluation.published import art_inception_part, inception_part, lpips_parts, vgg19_part
from semblance.host.evaluation.weights import Part, find_weights
from semblance.host.files import UnreadableFile
from semblance.tests.support.metric_weights import (
    Weights,
    heads,
    inception,
    inception_trunk,
    network,
    put,
    saved_lpips,
)

NETWORKS = ("alex", "vgg", "squeeze")


@pytest.fixture
def metrics(place: Path) -> Path:
    return place / "models" / "semblance" / "metrics"


def refused(*parts: Part) -> str:
    with pytest.raises(UnreadableFile) as refusal:
        find_weights(*parts)
    return str(refusal.value)


def without(weights: Weights, *names: str) -> Weights:
    return {name: tensor for name, tensor in weights.items() if name not in names}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_network_and_heads_are_found_under_any_names(metrics: Path, name: str, ending: str) -> None:
    put(network(name), metrics, f"something.{ending}")
    put(heads(name), metrics / "deeper", f"else.{ending}")
    found = find_weights(*lpips_parts(name))
    assert all(torch.equal(tensor, found[key]) for key, tensor in heads(name).items())
    assert torch.equal(found["features.0.weight"], network(name)["features.0.weight"])
    assert "classifier.6.bias" not in found, "of a whole published file only the needed part is kept"


@pytest.mark.parametrize("name", NETWORKS)
def test_the_heads_that_the_authors_publish_are_recognised(metrics: Path, name: str) -> None:
    published = Path(lpips.__file__).parent / "weights" / "v0.1" / f"{name}.pth"
    (metrics / "heads.pth").write_bytes(published.read_bytes())
    (_, part) = lpips_parts(name)
    found = find_weights(part)
    assert set(found) == set(part.shapes) and all((weights >= 0).all() for weights in found.values())


@pytest.mark.parametrize("name", NETWORKS)
def test_one_file_may_hold_network_and_heads(metrics: Path, name: str) -> None:
    put(saved_lpips(name), metrics, "all.safetensors")
    found = find_weights(*lpips_parts(name))
    expected = without(network(name), "classifier.6.bias") | heads(name)
    needed = {key for part in lpips_parts(name) for key in part.shapes}
    assert set(found) == needed and all(torch.equal(found[key], expected[key]) for key in needed)


def test_comfyui_s_own_folder_of_classifiers_is_searched_too(place: Path) -> None:
    put(network("vgg19"), place / "models" / "classifiers", "vgg19.pth")
    assert "features.10.weight" in find_weights(vgg19_part())


def test_safetensors_come_first(metrics: Path) -> None:
    put(network("vgg19", seed=1), metrics, "a.pth")
    put(network("vgg19", seed=2), metrics, "b.safetensors")
    assert torch.equal(find_weights(vgg19_part())["features.0.weight"], network("vgg19", 2)["features.0.weight"])


def test_half_precision_is_read_as_single(metrics: Path) -> None:
    put({key: tensor.half() for key, tensor in network("vgg19").items()}, metrics, "half.safetensors")
    assert {tensor.dtype for tensor in find_weights(vgg19_part()).values()} == {torch.float32}


@pytest.mark.parametrize(
    ("parts", "file", "where"),
    [
        (lpips_parts("alex"), r"alexnet.safetensors .9.9 MB.", "huggingface.co/achiru/DiffSynth-Studio-ImageMetrics"),
        (lpips_parts("vgg"), r"vgg16-397923af.pth .528 MB.", "download.pytorch.org/models"),
        ((inception_part(),), r"pt_inception-2015-12-05-6726825d.pth .91 MB.", "github.com/mseitzer/pytorch-fid"),
        ((art_inception_part(),), r"art_inception.pth .about 90 MB.", "huggingface.co/matthias-wright/art_inception"),
        ((vgg19_part(),), r"vgg19-dcbb9e9d.pth .548 MB.", "download.pytorch.org/models"),
    ],
)
def test_a_missing_file_is_named_with_its_size_place_and_folder(
    metrics: Path, parts: tuple[Part, ...], file: str, where: str
) -> None:
    message = refused(*parts)
    assert re.search(file, message) and where in message and str(metrics) in message, message
    assert message.startswith(f"There is no file with {parts[0].what} in "), message


def test_missing_heads_are_asked_for_by_themselves(metrics: Path) -> None:
    put(network("alex"), metrics, "alex.safetensors")
    assert "There is no file with the heads of LPIPS alex" in refused(*lpips_parts("alex"))


def test_a_truncated_network_is_refused_with_its_first_missing_tensor(metrics: Path) -> None:
    put(without(network("alex"), "features.8.bias", "features.10.weight"), metrics, "cut.safetensors")
    message = refused(*lpips_parts("alex"))
    assert message.startswith("'cut.safetensors' has no tensor 'features.8.bias': it is not whole, or not the network")


def test_a_tensor_of_another_shape_is_named(metrics: Path) -> None:
    wrong = network("vgg19") | {"features.10.weight": torch.zeros(256, 128, 1, 1)}
    put(wrong, metrics, "odd.pth")
    assert "its tensor 'features.10.weight' has the shape (256, 128, 1, 1), expected (256, 128, 3, 3)" in refused(
        vgg19_part()
    )


def test_vgg16_is_not_taken_for_vgg19_nor_the_other_way_round(metrics: Path) -> None:
    put(network("vgg"), metrics, "vgg16.pth")
    assert refused(vgg19_part()).startswith("'vgg16.pth' is VGG-16, not the VGG-19 of CFSD.")
    (metrics / "vgg16.pth").unlink()
    put(network("vgg19"), metrics, "vgg19.pth")
    assert refused(*lpips_parts("vgg")).startswith("'vgg19.pth' is VGG-19, not the network of LPIPS vgg.")


def test_the_inception_of_imagenet_is_refused_and_the_right_file_named(metrics: Path) -> None:
    put(inception(1000), metrics, "inception_v3_google-0cc3c7bd.safetensors")
    for part, file in ((inception_part(), "pt_inception-2015-12-05"), (art_inception_part(), "art_inception.pth")):
        message = refused(part)
        assert "is torchvision's Inception, trained on ImageNet's 1,000 classes, not the Inception of" in message
        assert file in message


def test_each_inception_is_told_from_the_others(metrics: Path) -> None:
    put(inception(1008), metrics, "a.safetensors")
    assert len(find_weights(inception_part())["fc.bias"]) == 1008
    assert "'a.safetensors' is the Inception of FID, trained in TensorFlow, not" in refused(art_inception_part())
    put(inception_trunk(), metrics, "b.safetensors")
    assert "Conv2d_1a_3x3.conv.weight" in find_weights(art_inception_part())
    (metrics / "a.safetensors").unlink()
    assert "'b.safetensors' has no tensor 'fc.bias'" in refused(inception_part())
    put(inception_trunk() | {"fc1.bias": torch.zeros(9)}, metrics, "b.safetensors")
    assert "is the Inception of ArtFID, trained on paintings, not the Inception of FID" in refused(inception_part())
    assert "Mixed_7c.branch_pool.bn.bias" in find_weights(art_inception_part())


def test_torchscript_is_not_opened(metrics: Path) -> None:
    program = torch.jit.script(nn.Linear(2, 2))
    torch.jit.save(program, str(metrics / "inception-2015-12-05.pt"))
    message = refused(inception_part())
    assert "'inception-2015-12-05.pt' was not opened: it is a TorchScript archive, a program that would run" in message
    assert "Use the weights of the same network as .safetensors or .pth instead" in message


def test_a_damaged_file_is_named_only_where_no_other_serves(metrics: Path) -> None:
    whole = put(network("alex"), metrics, "a.safetensors").read_bytes()
    (metrics / "a.safetensors").write_bytes(whole[:100])
    (metrics / "b.pth").write_bytes(b"\x80\x02nonsense")
    message = refused(vgg19_part())
    assert "'a.safetensors' cannot be read: the file is damaged" in message and "'b.pth'" in message
    put(network("vgg19"), metrics, "c.pth")
    assert find_weights(vgg19_part())


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return Path.write_text, (self.mark, "boom")


def test_code_in_a_pickle_does_not_run(metrics: Path) -> None:
    mark = metrics / "mark"
    weights: dict[str, Tensor | Bomb] = {**network("vgg19"), "x": Bomb(mark)}
    torch.save(weights, metrics / "trap.pth")
    assert "'trap.pth' was not opened: it holds program code" in refused(vgg19_part())
    assert not mark.exists()
