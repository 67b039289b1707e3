"""The template score_and_pick over HTTP: another pick runs nothing but the picking, and the sheet comes again."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from semblance.harness.server import ComfyUIServer, History, Prompt, PromptFailed

TEMPLATE = Path(__file__).parent / "score_and_pick.json"


def prompt(**changes: dict[str, Any]) -> Prompt:
    """The template in two steps at 64 x 64, with inputs changed by node type."""
    read: Prompt = json.loads(TEMPLATE.read_text(encoding="utf-8"))
    # Without the preview of the style picture, which would run also where the rest is refused.
    nodes = {number: node for number, node in read.items() if node["class_type"] != "PreviewImage"}
    fitting = {"KSampler": {"steps": 2}, "EmptyLatentImage": {"width": 64, "height": 64}}
    floor = {"SemblancePickImages": {"floor": -1.0}}
    for node in nodes.values():
        for wanted in (fitting, floor, changes):
            node["inputs"] |= wanted.get(node["class_type"], {})
    return nodes


def number_of(nodes: Prompt, kind: str) -> str:
    return next(number for number, node in nodes.items() if node["class_type"] == kind)


def executed(nodes: Prompt, history: History) -> set[str]:
    """The types of the nodes that ran rather than came from the cache."""
    cached = {
        number for name, told in history["status"]["messages"] if name == "execution_cached" for number in told["nodes"]
    }
    return {node["class_type"] for number, node in nodes.items() if number not in cached}


def test_another_pick_runs_only_the_picking_and_what_follows(comfyui: ComfyUIServer) -> None:
    by_rule, by_hand = prompt(), prompt(SemblancePickImages={"picked": "6, 1, 3"})
    assert len(comfyui.outputs(comfyui.run(by_rule))) == 2
    history = comfyui.run(by_hand)
    assert executed(by_hand, history) == {"SemblancePickImages", "SaveImage"}
    assert len(comfyui.outputs(history)) == 3
    (sheet,) = history["outputs"][number_of(by_hand, "SemblancePickImages")]["sheet"]
    assert sheet["picked"] == [6, 1, 3] and sheet["count"] == 8


def test_the_sheet_comes_again_from_the_cache(comfyui: ComfyUIServer) -> None:
    nodes = prompt(SemblancePickImages={"picked": "0, 5"})
    first, second = comfyui.run(nodes), comfyui.run(nodes)
    pick = number_of(nodes, "SemblancePickImages")
    assert executed(nodes, second) == set()
    assert second["outputs"][pick] == first["outputs"][pick]
    (shown,) = second["outputs"][pick]["images"]
    (layout,) = second["outputs"][pick]["sheet"]
    with Image.open(comfyui.base_directory / "temp" / shown["filename"]) as sheet:
        assert list(sheet.size) == layout["size"]


def test_what_is_no_number_is_refused_before_anything_is_sampled(comfyui: ComfyUIServer) -> None:
    with pytest.raises(PromptFailed, match="'two' is not the number of a picture"):
        comfyui.queue(prompt(SemblancePickImages={"picked": "two"}))


def test_picked_latents_and_prompts_go_where_comfyui_s_nodes_take_them(comfyui: ComfyUIServer) -> None:
    nodes = prompt(SemblancePickImages={"picked": "2, 4", "latents": ["10", 0]})
    assert nodes["10"]["class_type"] == "KSampler"
    pick = number_of(nodes, "SemblancePickImages")
    demo = number_of(nodes, "SemblanceLoadDemo")
    nodes["again"] = {"class_type": "VAEDecode", "inputs": {"samples": [pick, 1], "vae": [demo, 2]}}
    nodes["same"] = {"class_type": "SaveImage", "inputs": {"images": ["again", 0], "filename_prefix": "again"}}
    nodes["text"] = {"class_type": "CLIPTextEncode", "inputs": {"clip": [demo, 1], "text": [pick, 2]}}
    nodes["latent"] = {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}}
    sampler = deepcopy(nodes["10"]["inputs"]) | {"positive": ["text", 0], "latent_image": ["latent", 0], "steps": 1}
    nodes["each"] = {"class_type": "KSampler", "inputs": sampler}
    nodes["drawn"] = {"class_type": "VAEDecode", "inputs": {"samples": ["each", 0], "vae": [demo, 2]}}
    nodes["shown"] = {"class_type": "SaveImage", "inputs": {"images": ["drawn", 0], "filename_prefix": "each"}}
    history = comfyui.run(nodes)
    saved = [history["outputs"][number]["images"] for number in (number_of(nodes, "SaveImage"), "same", "shown")]
    assert [len(pictures) for pictures in saved] == [2, 2, 2]
    folder = comfyui.base_directory / "output"
    pairs = zip(
        *([Image.open(folder / one["subfolder"] / one["filename"]) for one in each] for each in saved[:2]), strict=True
    )
    assert all(list(one.getdata()) == list(other.getdata()) for one, other in pairs)


def test_latents_that_are_wanted_but_not_connected_stop_only_the_nodes_that_want_them(comfyui: ComfyUIServer) -> None:
    """ComfyUI shows the sentence as an event; its history goes on."""
    nodes = prompt()
    pick, demo = number_of(nodes, "SemblancePickImages"), number_of(nodes, "SemblanceLoadDemo")
    nodes["again"] = {"class_type": "VAEDecode", "inputs": {"samples": [pick, 1], "vae": [demo, 2]}}
    nodes["same"] = {"class_type": "SaveImage", "inputs": {"images": ["again", 0], "filename_prefix": "again"}}
    outputs = comfyui.run(nodes)["outputs"]
    assert "images" in outputs[number_of(nodes, "SaveImage")] and not outputs.get("same")
