"""The nodes that measure, over the real server: folders and pictures in, numbers on the node."""

from __future__ import annotations

from typing import Any

import pytest

from semblance.harness.server import ComfyUIServer, Prompt, PromptFailed
from semblance.tests.support.evaluation import write_pictures
from semblance.tests.support.graphs import picture
from semblance.tests.support.metric_weights import inception, inception_trunk, network, put, saved_lpips

SIDE = 80


@pytest.fixture(scope="module")
def server(comfyui: ComfyUIServer) -> ComfyUIServer:
    """With weights for LPIPS and CFSD, and three folders of two pictures each."""
    metrics = comfyui.models("semblance/metrics")
    put(saved_lpips("alex"), metrics, "alexnet.safetensors")
    put(network("vgg19"), metrics, "vgg19.pth")
    for seed, name in enumerate(("content", "style", "stylised")):
        write_pictures(comfyui.base_directory / "output" / name, picture(seed, SIDE, SIDE, 2))
    return comfyui


@pytest.fixture(scope="module")
def with_inceptions(server: ComfyUIServer) -> ComfyUIServer:
    metrics = server.models("semblance/metrics")
    put(inception(1008), metrics, "pt_inception.safetensors")
    put(inception_trunk(), metrics, "art_inception.safetensors")
    return server


def graph(kind: str, report: int, **inputs: Any) -> Prompt:
    return {
        "white": {"class_type": "EmptyImage", "inputs": {"width": SIDE, "height": SIDE, "batch_size": 2, "color": 9}},
        "measure": {"class_type": kind, "inputs": inputs},
        "show": {"class_type": "PreviewAny", "inputs": {"source": ["measure", report]}},
        "scores": {"class_type": "PreviewAny", "inputs": {"source": ["measure", 0]}},
    }


def shown(server: ComfyUIServer, prompt: Prompt) -> tuple[str, str]:
    """The report, which is on the node too, and what the SCORES are."""
    outputs = server.run(prompt)["outputs"]
    report, scores = (outputs[name]["text"][0] for name in ("show", "scores"))
    assert outputs["measure"]["text"] == [report]
    return report, scores


def lpips(a: Any, b: Any) -> Prompt:
    return graph("SemblanceLPIPS", 1, a=a, b=b, network="alex", short_side=0)


def test_lpips_of_a_folder_and_connected_pictures(server: ComfyUIServer) -> None:
    report, scores = shown(server, lpips("output/content", ["white", 0]))
    assert "on average over 2 pairs, output/content against b" in report and scores == "2 rows of LPIPS"


def test_a_node_that_measures_needs_no_node_after_it(server: ComfyUIServer) -> None:
    alone = {"measure": lpips("output/content", "output/style")["measure"]}
    for _ in range(2):  # from the cache too
        assert "over 2 pairs" in server.run(alone)["outputs"]["measure"]["text"][0]


def test_a_picture_more_in_the_folder_is_measured_without_a_change_of_the_graph(server: ComfyUIServer) -> None:
    folder = write_pictures(server.base_directory / "output" / "growing", picture(1, SIDE, SIDE, 2))
    prompt = lpips("output/growing", "output/growing")
    assert "over 2 pairs" in shown(server, prompt)[0]
    write_pictures(folder, picture(1, SIDE, SIDE, 3))
    assert "over 3 pairs" in shown(server, prompt)[0]


def test_cfsd_of_two_folders(server: ComfyUIServer) -> None:
    inputs = {"content": "output/content", "stylised": "output/stylised", "form": "official", "short_side": 64}
    report, scores = shown(server, graph("SemblanceCFSD", 1, **inputs))
    assert "scaled to 64 pixels on the short side" in report and scores == "2 rows of CFSD"


@pytest.mark.slow
def test_fid_saves_statistics_and_reads_them(with_inceptions: ComfyUIServer) -> None:
    inputs = {"a": ["white", 0], "form": "FID", "save": "styles"}
    first = shown(with_inceptions, graph("SemblanceFID", 2, b="output/style", **inputs))[0]
    assert "write statistics/styles in place of its folder" in first
    report, scores = shown(with_inceptions, graph("SemblanceFID", 2, b="statistics/styles", **inputs | {"save": ""}))
    assert report.startswith("FID ") and "a against statistics/styles" in report and scores == "1 rows of FID"


@pytest.mark.slow
def test_art_fid_of_three_folders(with_inceptions: ComfyUIServer) -> None:
    inputs = {name: f"output/{name}" for name in ("content", "style", "stylised")}
    report, scores = shown(with_inceptions, graph("SemblanceArtFID", 1, **inputs, form="published", short_side=512))
    assert "(1 + LPIPS" in report and scores == "1 rows of ArtFID, FID (art), LPIPS"


@pytest.mark.parametrize(
    ("folder", "sentence"),
    [
        ("output/none", "There is no folder 'output/none'"),
        ("../secret", "'../secret' is not a folder under ComfyUI's input or output"),
        ("", "There are no pictures for a"),
    ],
)
def test_a_folder_that_cannot_be_read_stops_the_graph_before_it_runs(
    server: ComfyUIServer, folder: str, sentence: str
) -> None:
    with pytest.raises(PromptFailed, match=sentence) as failure:
        server.run(lpips(folder, ["white", 0]))
    assert failure.value.node_id == "measure"


def test_missing_weights_turn_the_node_red_with_what_to_put_where(server: ComfyUIServer) -> None:
    prompt = lpips("output/content", "output/style")
    prompt["measure"]["inputs"]["network"] = "squeeze"
    with pytest.raises(PromptFailed, match="no file with the network of LPIPS squeeze in .*squeezenet.safetensors"):
        server.run(prompt)
