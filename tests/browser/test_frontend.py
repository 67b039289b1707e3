"""The frontend opens a sound workflow without complaint, converts it to what the server runs, and names every fault."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
from PIL import Image

from semblance.harness.server import ComfyUIServer
from semblance.tests.browser.frontend import BrowserUnavailable, Frontend, Workflow, find_browser

WORKFLOW: Workflow = {
    "version": 0.4,
    "last_node_id": 3,
    "last_link_id": 2,
    "nodes": [
        {
            "id": 1,
            "type": "EmptyImage",
            "pos": [100, 100],
            "size": [270, 130],
            "flags": {},
            "order": 0,
            "mode": 0,
            "inputs": [],
            "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": [1]}],
            "properties": {},
            "widgets_values": [64, 48, 1, 255],
        },
        {
            "id": 2,
            "type": "ImageInvert",
            "pos": [450, 100],
            "size": [210, 30],
            "flags": {},
            "order": 1,
            "mode": 0,
            "inputs": [{"name": "image", "type": "IMAGE", "link": 1}],
            "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": [2]}],
            "properties": {},
            "widgets_values": [],
        },
        {
            "id": 3,
            "type": "SaveImage",
            "pos": [740, 100],
            "size": [270, 270],
            "flags": {},
            "order": 2,
            "mode": 0,
            "inputs": [{"name": "images", "type": "IMAGE", "link": 2}],
            "outputs": [],
            "properties": {},
            "widgets_values": ["inverted"],
        },
    ],
    "links": [[1, 1, 0, 2, 0, "IMAGE"], [2, 2, 0, 3, 0, "IMAGE"]],
    "groups": [],
    "config": {},
    "extra": {},
}


@pytest.fixture
def workflow() -> Workflow:
    return deepcopy(WORKFLOW)


def test_sound_workflow_has_no_faults(frontend: Frontend, workflow: Workflow) -> None:
    frontend.load(workflow)
    assert frontend.faults() == []


def test_frontend_s_api_form_runs_on_the_server(frontend: Frontend, workflow: Workflow, comfyui: ComfyUIServer) -> None:
    frontend.load(workflow)
    prompt = frontend.api_prompt()
    assert prompt["1"]["inputs"] == {"width": 64, "height": 48, "batch_size": 1, "color": 255}
    assert prompt["2"]["inputs"] == {"image": ["1", 0]}
    (picture,) = comfyui.outputs(comfyui.run(prompt))
    assert Image.open(picture).getpixel((0, 0)) == (255, 255, 0)


def test_screenshot_shows_the_whole_graph(frontend: Frontend, workflow: Workflow, tmp_path: Path) -> None:
    frontend.load(workflow)
    picture = Image.open(frontend.screenshot(tmp_path / "graph.png")).convert("RGB")
    colours = picture.getcolors(maxcolors=picture.width * picture.height)
    assert picture.width >= 900 and colours is not None and len(colours) > 100


def test_unknown_node_is_named(frontend: Frontend, workflow: Workflow) -> None:
    workflow["nodes"][1]["type"] = "NoSuchNode"
    frontend.load(workflow)
    assert frontend.faults() == ["NoSuchNode (node 2) is not a node this ComfyUI knows"]


def test_unconnected_required_input_is_named(frontend: Frontend, workflow: Workflow) -> None:
    workflow["nodes"][2]["inputs"][0]["link"] = None
    workflow["nodes"][1]["outputs"][0]["links"] = []
    del workflow["links"][1]
    frontend.load(workflow)
    assert frontend.faults() == ["SaveImage (node 3) misses its input images"]


def test_lost_link_is_named(frontend: Frontend, workflow: Workflow) -> None:
    del workflow["links"][1]
    frontend.load(workflow)
    assert frontend.faults() == ["SaveImage (node 3): the link of its input images leads nowhere"]


def test_link_of_an_input_that_no_longer_exists_is_named(frontend: Frontend, workflow: Workflow) -> None:
    workflow["nodes"][2]["inputs"][0]["name"] = "pictures"
    frontend.load(workflow)
    assert frontend.faults() == [
        "SaveImage (node 3) misses its input images",
        "link 2 from node 2 to node 3 was lost",
    ]


def test_missing_browser_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CHROMIUM_PATH", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BrowserUnavailable, match="Install Chromium"):
        find_browser()
