"""LPIPS, FID, ArtFID and CFSD on random weights of the real shapes: numbers, reports, and what they refuse."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import comfy.model_management
import pytest
import torch
from torch import Tensor

from semblance.host.evaluation import art_fid as art_fid_module
from semblance.host.evaluation import fid as fid_module
from semblance.host.evaluation.folders import open_folder
from semblance.host.files import UnreadableFile, UnwritableFile
from semblance.metrics import cfsd as pure_cfsd
from semblance.metrics import lpips as pure_lpips
from semblance.metrics.art_fid import art_fid
from semblance.metrics.frechet import FeatureStatistics, frechet_distance
from semblance.metrics.inception import Inception
from semblance.metrics.scores import fingerprint
from semblance.nodes.evaluate_pairs import CFSD, LPIPS
from semblance.nodes.evaluate_sets import FID, ArtFID
from semblance.tests.support.evaluation import own_folders, write_pictures
from semblance.tests.support.graphs import picture, run
from semblance.tests.support.metric_weights import heads, inception, inception_trunk, network, put, saved_lpips

SIDE = 80
"""Pixels; Art-Inception takes 75 and more."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file for every network, in the layouts in which they are published."""
    folder = tmp_path_factory.mktemp("weights")
    put(saved_lpips("alex"), folder, "alexnet.safetensors")
    put(network("squeeze"), folder, "squeezenet.pth")
    put(heads("squeeze"), folder, "squeeze.pth")
    put(network("vgg19"), folder, "vgg19.pth")
    put(inception(1008), folder, "pt_inception.safetensors")
    put(inception_trunk(), folder, "art_inception.safetensors")
    return folder


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: Path) -> Path:
    """ComfyUI's folders, with the networks in models/semblance/metrics."""
    root = own_folders(tmp_path, monkeypatch)
    (root / "models" / "semblance" / "metrics").rmdir()
    (root / "models" / "semblance" / "metrics").symlink_to(files)
    return root


@pytest.fixture
def quick_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    """The distance of the means alone: the root of two matrices of 2048 x 2048 takes seconds."""
    for module in (fid_module, art_fid_module):
        monkeypatch.setattr(module, "frechet_distance", lambda one, other: float((one.mean - other.mean).norm()))


@pytest.fixture(autouse=True)
def nothing_stays_loaded() -> Iterator[None]:
    """A network is let go with the node that used it; what tests of other files have loaded does not count."""
    before = list(comfy.model_management.current_loaded_models)
    yield
    gc.collect()
    comfy.model_management.cleanup_models()
    assert [loaded for loaded in comfy.model_management.current_loaded_models if loaded not in before] == []


def seen(pictures: Tensor) -> Tensor:
    """An IMAGE as networks take it."""
    return pictures.movedim(-1, 1)


def lpips(*given: Any, network: str = "alex", short_side: int = 0) -> Any:
    return run(LPIPS, *given, network=network, short_side=short_side)


def cfsd(*given: Any, form: str = "official", short_side: int = 0) -> Any:
    return run(CFSD, *given, form=form, short_side=short_side)


def fid(*given: Any, form: str = "FID", save: str = "") -> Any:
    return run(FID, *given, form=form, save=save)


def art(*given: Any, form: str = "published", short_side: int = 0) -> Any:
    return run(ArtFID, *given, form=form, short_side=short_side)


# Numbers


@pytest.mark.parametrize("name", ["alex", "squeeze"])
def test_lpips_is_that_of_the_pure_metric_row_by_row(place: Path, name: str) -> None:
    first, second = picture(1, SIDE, SIDE, 3), picture(2, SIDE, SIDE, 3)
    scores, report = lpips(first, second, network=name).args
    expected = pure_lpips.LPIPS.from_state(network(name) | heads(name), name)(seen(first), seen(second))
    assert torch.allclose(torch.tensor(scores["LPIPS"].values), expected, rtol=1e-4)
    assert scores.rows == ("b 0", "b 1", "b 2") and not scores["LPIPS"].higher_is_better
    assert scores.pictures == tuple(fingerprint(one) for one in second)
    assert f"LPIPS {expected.mean():.4g} on average over 3 pairs, a against b" in report
    assert f"LPIPS v0.1 with {name}, pictures as they are" in scores.protocol


def test_one_picture_is_measured_against_many(place: Path) -> None:
    one, many = picture(1, SIDE, SIDE), picture(2, SIDE, SIDE, 3)
    forward, backward = lpips(one, many)[0], lpips(many, one)[0]
    assert forward["LPIPS"].values == pytest.approx(backward["LPIPS"].values, rel=1e-4)
    assert forward.pictures == backward.pictures == tuple(fingerprint(picture) for picture in many)
    assert backward.rows == ("a 0", "a 1", "a 2")


def test_a_folder_measures_as_its_batch(place: Path) -> None:
    first, second = picture(1, SIDE, SIDE, 2), picture(2, SIDE, SIDE, 2)
    write_pictures(place / "output" / "b", second)
    from_folder, from_batch = lpips(first, "output/b")[0], lpips(first, second)[0]
    assert from_folder["LPIPS"].values == pytest.approx(from_batch["LPIPS"].values, rel=1e-5)
    assert from_folder.rows == ("000.png", "001.png") and from_folder.pictures == from_batch.pictures


def test_scores_know_the_pictures_that_came_in_though_they_were_scaled(place: Path) -> None:
    first, second = picture(1, 100, 120, 2), picture(2, 100, 120, 2)
    for scores in (lpips(first, second, short_side=48)[0], cfsd(first, second, short_side=48)[0]):
        assert scores.pictures == tuple(fingerprint(one) for one in second)
        assert "scaled to 48 pixels on the short side" in scores.protocol


def test_one_pair_has_no_interval(place: Path) -> None:
    report = lpips(picture(1, SIDE, SIDE), picture(2, SIDE, SIDE))[1]
    assert " of 1 pair, a against b.\n" in report and "interval" not in report
    assert "on average over 2 pairs, a against b (95 % interval of the mean: " in lpips(several(1), several(2))[1]


def test_pairs_of_files_with_different_names_are_named_and_counted(place: Path) -> None:
    write_pictures(place / "output" / "a", several(3))
    folder = write_pictures(place / "output" / "b", several(3))
    (folder / "001.png").rename(folder / "001 styled.png")
    scores, report = lpips("output/a", "output/b").args
    assert "1 of 3 pairs has different names, the first: 001.png with 001 styled.png." in report
    assert scores.rows == ("000.png", "001.png with 001 styled.png", "002.png")


def test_a_long_pair_can_be_stopped_in_the_middle(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A press on Cancel while the rows of a similarity matrix are compared."""
    features = pure_cfsd.CFSD.features

    def interrupted(metric: pure_cfsd.CFSD, pictures: Tensor) -> Tensor:
        comfy.model_management.interrupt_current_processing()
        return features(metric, pictures)

    monkeypatch.setattr(pure_cfsd.CFSD, "features", interrupted)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        cfsd(picture(1, 32, 32), picture(2, 32, 32))


def test_values_that_were_cut_off_are_in_every_report(place: Path) -> None:
    bright = several(1) * 1.5
    assert "b holds values from 0" in lpips(several(1), bright)[1]
    assert "stylised holds values from 0" in cfsd(several(1), bright)[1]


@pytest.mark.parametrize("form", ["official", "paper"])
def test_cfsd_is_that_of_the_pure_metric(place: Path, form: str) -> None:
    content, stylised = picture(1, 48, 64, 2), picture(2, 48, 64, 2)
    scores = cfsd(content, stylised, form=form)[0]
    pure = pure_cfsd.CFSD.from_state(network("vgg19"))
    expected = (pure if form == "official" else pure.per_place)(seen(stylised), seen(content))
    assert scores["CFSD"].values == pytest.approx(expected.tolist(), rel=5e-3)
    assert cfsd(content, content, form=form)[0]["CFSD"].values == pytest.approx((0.0, 0.0), abs=1e-6)
    assert scores.pictures == tuple(fingerprint(one) for one in stylised)


@pytest.mark.slow
def test_fid_is_that_of_the_pure_metric_and_says_its_protocol(place: Path) -> None:
    first, second = picture(1, 40, 40, 4), picture(2, 24, 56, 3)
    scores, distance, report = fid(first, second).args
    pure = Inception.for_fid(inception(1008))
    features = [torch.cat([pure(seen(one[None])) for one in pictures]) for pictures in (first, second)]
    expected = frechet_distance(*map(FeatureStatistics.of, features))
    assert distance == scores["FID"].values[0] == pytest.approx(expected, rel=1e-4)
    assert scores.rows == ("a against b",) and scores.pictures == ()
    for text in (report, scores.protocol):
        assert "FID of 4 against 3 pictures by TensorFlow's Inception" in text and "scaled to 299x299" in text
        assert "With fewer than 2,048 pictures the number hangs on how many there are: compare under the same" in text


@pytest.mark.usefixtures("quick_distance")
def test_statistics_of_b_are_kept_and_stand_in_for_its_pictures(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = picture(1, 40, 40, 2), picture(2, 40, 40, 3)
    _, distance, report = fid(first, second, save="real").args
    assert "The statistics of b are kept: write statistics/real in place of its folder." in report
    assert fid(first, "statistics/real")[1] == pytest.approx(distance, rel=1e-6)
    monkeypatch.setattr(fid_module, "fid_network", None)  # with both sides saved none is needed
    again = fid("statistics/real", "statistics/real", save="real")
    assert again[1] == 0 and "write statistics/real 2 in place" in again[2], "nothing is overwritten"


@pytest.mark.usefixtures("quick_distance")
def test_statistics_of_other_weights_are_refused(place: Path) -> None:
    fid(picture(1, 40, 40, 2), picture(2, 40, 40, 2), save="real")
    file = place / "models" / "semblance" / "statistics" / "real.safetensors"
    whole = file.read_bytes()
    header = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])
    own = header["__metadata__"]["network"]
    file.write_bytes(whole.replace(own.encode(), b"0" * len(own)))
    with pytest.raises(ValueError, match="'statistics/real' was made with other weights of the Inception than those"):
        fid(picture(1, 40, 40, 2), "statistics/real")


@pytest.mark.slow
def test_art_fid_is_made_of_lpips_and_of_fid_on_paintings(place: Path) -> None:
    content, style, stylised = (picture(seed, SIDE, SIDE, 3) for seed in (1, 2, 3))
    scores, report = art(content, style, stylised).args
    pure = Inception.for_art_fid(inception_trunk() | {"fc1.bias": torch.zeros(1)})
    distance = frechet_distance(*(FeatureStatistics.of(pure(seen(side))) for side in (stylised, style)))
    kept = float(pure_lpips.LPIPS.from_state(saved_lpips("alex"), "alex")(seen(stylised), seen(content)).mean())
    assert scores["FID (art)"].mean == pytest.approx(distance, rel=1e-4)
    assert scores["LPIPS"].mean == pytest.approx(kept, rel=1e-4)
    assert scores["ArtFID"].mean == pytest.approx(art_fid(kept, distance), rel=1e-4)
    assert "the same for 3 pictures" in report and "ArtFID (published) of 3 stylised pictures" in scores.protocol
    plain = art(content, style, stylised, form="plain")[0]
    assert plain["ArtFID"].mean == pytest.approx(scores["ArtFID"].mean)


@pytest.mark.usefixtures("quick_distance")
def test_art_fid_scales_as_styleid_s_evaluation_does(place: Path) -> None:
    """Each picture's short side; the styles may have any shape."""
    content, style = picture(1, 100, 120, 2), picture(2, 90, 150, 2)
    scores = art(content, style, content, short_side=SIDE)[0]
    assert scores["LPIPS"].mean == pytest.approx(0) and scores["ArtFID"].mean > 1
    assert [measure.name for measure in scores.measures] == ["ArtFID", "FID (art)", "LPIPS"], "not FID's own network"
    assert f"scaled to {SIDE} pixels on the short side (bilinear)" in scores.protocol


@pytest.mark.usefixtures("quick_distance")
def test_fid_infinity_of_few_pictures_is_the_plain_one_and_says_so(place: Path) -> None:
    first, second = picture(1, 32, 32, 2), picture(2, 32, 32, 2)
    infinite = fid(first, second, form="FID-infinity")
    assert infinite[0].measures[0].name == "FID-infinity", "a table keeps it apart from FID"
    assert infinite[1] == pytest.approx(fid(first, second)[1])
    assert "Up to 5,000 pictures FID-infinity is the plain FID" in infinite[2]


def test_fid_infinity_of_many_keeps_the_features(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line over 1 / size, with the bound lowered so that five pictures are many."""
    asked: list[tuple[int, ...]] = []

    def infinity(first: Tensor, second: Tensor, generator: torch.Generator) -> float:
        asked.append((*first.shape, *second.shape))
        return 7.0

    monkeypatch.setattr(fid_module, "SMALLEST_SUBSET", 2)
    monkeypatch.setattr(fid_module, "frechet_infinity", infinity)
    folder = write_pictures(place / "output" / "a", picture(1, 32, 32, 3))
    (folder / "001.png").write_bytes(b"broken")
    assert fid("output/a", picture(2, 32, 32, 3), form="FID-infinity")[1] == 7.0
    assert asked == [(2, 2048, 2, 2048)]


# What is refused


def several(images: int, seed: int = 0, side: int = SIDE) -> Tensor:
    return picture(seed, side, side, images)


REFUSALS: dict[str, tuple[Callable[[], Any], str]] = {
    "different counts": (
        lambda: lpips(several(2), several(3)),
        "found 2 in a, 3 in b. Give each picture its partner at the same place",
    ),
    "different counts for CFSD": (lambda: cfsd(several(1), several(3)), "needs as many of each; found 1 in content"),
    "contents and styles that multiply": (
        lambda: art(several(2), several(3), several(6)),
        "ArtFID pairs the pictures .*found 2 in content, 3 in style, 6 in stylised.*once more where it has several",
    ),
    "one picture for FID": (
        lambda: fid(several(1), several(3)),
        "FID compares how the pictures of a set differ among themselves, but a holds one .*Give at least two",
    ),
    "one picture for ArtFID": (lambda: art(several(1), several(1), several(1)), "but stylised holds one"),
    "NaN": (lambda: cfsd(several(2), several(2) / 0), "The input stylised holds pixels that are not numbers"),
    "sizes": (lambda: lpips(several(1), several(1, side=96)), "The pair 'b 0' is 80x80 and 96x96 pixels.*short_side"),
    "too small for alex": (lambda: lpips(several(1, side=24), several(1, side=24)), "needs at least 31 on each side"),
    "too small for Art-Inception": (
        lambda: art(*(several(2, side=70) for _ in range(3))),
        "ArtFID needs at least 75 on each side",
    ),
    "too large for CFSD": (
        lambda: cfsd(torch.zeros(1, 2049, 2048, 3), torch.zeros(1, 2049, 2048, 3)),
        "2048x2049 pixels. CFSD compares each place with every other.*Set short_side to 512",
    ),
    "infinity of other counts": (
        lambda: fid(several(2), several(3), form="FID-infinity"),
        "takes as many pictures of both sets, but there are 2 and 3",
    ),
    "transparent": (lambda: lpips(torch.ones(1, 64, 64, 4), several(1)), "The input a has 4 channels"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_measured_is_refused_with_what_was_found_and_what_to_do(place: Path, case: str) -> None:
    action, sentence = REFUSALS[case]
    with pytest.raises(ValueError, match=sentence):
        action()


@pytest.mark.usefixtures("quick_distance")
def test_infinity_of_saved_statistics_is_refused(place: Path) -> None:
    fid(several(2), several(2), save="kept")
    with pytest.raises(
        ValueError, match="needs every picture of both sets, but statistics/kept holds statistics alone"
    ):
        fid(several(2), "statistics/kept", form="FID-infinity")


@pytest.mark.usefixtures("quick_distance")
def test_unknown_or_foreign_statistics_are_refused(place: Path) -> None:
    with pytest.raises(UnreadableFile, match="no saved statistics called 'statistics/none'. There are none yet. FID"):
        fid(several(2), "statistics/none")
    put({"mean": torch.zeros(2)}, place / "models" / "semblance" / "statistics", "other.safetensors")
    with pytest.raises(UnreadableFile, match="is not a file of statistics saved by Semblance.*written by FID, under a"):
        fid(several(2), "statistics/other")


def test_a_name_that_leads_out_is_refused_before_a_picture_is_read(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fid_module, "fid_network", None)
    with pytest.raises(UnwritableFile, match="'../out' is not a name for a file of statistics"):
        fid(several(2), several(2), save="../out")


def test_one_readable_picture_in_a_folder_is_one_for_fid(place: Path) -> None:
    folder = write_pictures(place / "output" / "a", several(2))
    (folder / "001.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match="but output/a holds one that can be read"):
        fid("output/a", several(2))


def test_what_was_left_out_is_in_the_report(place: Path) -> None:
    folder = write_pictures(place / "output" / "a", several(3))
    (folder / "001.png").write_bytes(b"broken")
    report = lpips("output/a", several(3))[1]
    assert "over 2 pairs" in report
    assert "Left out, 1 in all: output/a/001.png (not a picture of a known kind)." in report


# Folders, before and after


def test_a_folder_that_is_not_there_is_refused_before_the_graph_runs(place: Path) -> None:
    write_pictures(place / "output" / "b", several(2))
    assert LPIPS.validate_inputs(a="output/b", b="output/b") is True
    assert LPIPS.validate_inputs(a=None, b="output/b") is True, "a connected IMAGE is not known yet"
    assert "There is no folder 'output/none'" in str(LPIPS.validate_inputs(a="output/none", b="output/b"))
    assert "There are no pictures for content. Connect" in str(CFSD.validate_inputs(content="", stylised="output/b"))
    assert "is not a folder under" in str(ArtFID.validate_inputs(content="statistics/x"))
    assert "no saved statistics called 'statistics/x'" in str(FID.validate_inputs(a="statistics/x", b="output/b"))


@pytest.mark.parametrize(("node", "names"), [(LPIPS, ("a", "b")), (CFSD, ("content", "stylised")), (FID, ("a", "b"))])
def test_a_changed_folder_is_measured_again(place: Path, node: Any, names: tuple[str, str]) -> None:
    write_pictures(place / "output" / "b", several(2))
    given = dict.fromkeys(names, "output/b")
    before = node.fingerprint_inputs(**given)
    assert node.fingerprint_inputs(**given) == before
    write_pictures(place / "output" / "b", several(3))
    assert node.fingerprint_inputs(**given) != before
    assert "There is no folder" in node.fingerprint_inputs(**dict.fromkeys(names, "output/none"))


def test_folders_keep_the_order_that_the_authors_pair_by(place: Path) -> None:
    assert open_folder(str(write_pictures(place / "output" / "b", several(12)))).names[9:] == (
        "009.png",
        "010.png",
        "011.png",
    )
