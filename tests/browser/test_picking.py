"""Pick Images in the real frontend: a click on its sheet picks, only the picking runs anew, a reload loses nothing."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from semblance.harness.library import ROOT
from semblance.harness.server import ComfyUIServer
from semblance.tests.browser.frontend import NEXT_FRAMES, Frontend

TEMPLATE = ROOT / "workflows" / "score_and_pick.json"
VUE_NODES = "Comfy.VueNodes.Enabled"
FIELD = """() => app.graph.nodes.find(node => node.type === 'SemblancePickImages')
    .widgets.find(widget => widget.name === 'picked').value"""
PRESSED = """() => [...document.querySelectorAll('rect[aria-pressed="true"]')].map(cell => cell.ariaLabel)"""
WHEN_DRAWN = "() => { app.canvas.setDirty(true, true); return %s }"
"""A node takes up its pictures when it is drawn, and the canvas is not drawn again by itself."""
SHOWN = """() => document.querySelectorAll('rect[aria-pressed]').length"""


@pytest.fixture(params=[False, True], ids=["canvas nodes", "Vue nodes"])
def opened(frontend: Frontend, comfyui: ComfyUIServer, request: pytest.FixtureRequest) -> Iterator[Frontend]:
    """The frontend, anew, with either kind of nodes."""
    frontend.start(comfyui.url)
    frontend.set(VUE_NODES, request.param)
    yield frontend
    frontend.set(VUE_NODES, False)
    frontend.start(comfyui.url)


SEEDS = itertools.count(1)
"""Another for each test that must sample: the server keeps what it has sampled."""


def template(**changes: Any) -> dict[str, Any]:
    """The template with fewer steps, and with the first widgets changed by the type of their node."""
    workflow = json.loads(TEMPLATE.read_text(encoding="utf-8"))
    for node in workflow["nodes"]:
        if node["type"] == "KSampler":
            node["widgets_values"][2] = 4
        if node["type"] in changes:
            node["widgets_values"][0] = changes[node["type"]]
    return workflow


def types(workflow: dict[str, Any], numbers: list[str]) -> list[str]:
    kinds = {str(node["id"]): node["type"] for node in workflow["nodes"]}
    return [kinds[number] for number in numbers]


def test_clicked_pictures_are_picked_and_only_the_picking_runs_anew(
    opened: Frontend, comfyui: ComfyUIServer, tmp_path: Path
) -> None:
    workflow, page = template(KSampler=next(SEEDS)), opened.page
    opened.load(workflow)
    opened.screenshot(tmp_path / "before.png")
    assert {"KSampler", "SemblanceCLIPScore", "SemblancePickImages"} <= set(types(workflow, opened.run()))
    page.wait_for_function(f"({SHOWN})() === 8")
    assert page.evaluate(FIELD) == "" and len(page.evaluate(PRESSED)) == 2  # those that the rule took
    page.locator('rect[aria-label="5"]').click()
    page.locator('rect[aria-label="2"]').click()
    assert page.evaluate(FIELD) == "5, 2"
    assert page.evaluate(PRESSED) == ["2", "5"]
    assert types(workflow, opened.run()) == ["SemblancePickImages", "SaveImage"]
    opened.screenshot(tmp_path / "picked.png")
    page.locator('rect[aria-label="5"]').press("Enter")
    assert page.evaluate(FIELD) == "2"
    assert page.evaluate(PRESSED) == ["2"]


def test_a_reload_shows_the_sheet_again_without_running_anything(opened: Frontend, comfyui: ComfyUIServer) -> None:
    workflow = template(SemblancePickImages="1, 6")
    opened.load(workflow)
    opened.run()
    opened.start(comfyui.url)
    opened.load(workflow)
    assert opened.run() == []
    opened.page.wait_for_function(f"({SHOWN})() === 8")
    assert opened.page.evaluate(PRESSED) == ["1", "6"]


def test_the_sheet_comes_back_with_its_workflow_and_is_not_saved_in_it(opened: Frontend) -> None:
    workflow = template(SemblancePickImages="4")
    opened.load(workflow)
    before = opened.api_prompt()
    opened.run()
    opened.page.wait_for_function(f"({SHOWN})() === 8")
    assert opened.api_prompt() == before
    saved = opened.page.evaluate("() => app.graph.serialize().nodes")
    assert next(node["widgets_values"] for node in saved if node["type"] == "SemblancePickImages")[0] == "4"
    assert {node["id"]: len(node.get("widgets_values") or []) for node in saved} == {
        node["id"]: len(node.get("widgets_values") or []) for node in workflow["nodes"]
    }
    opened.page.evaluate("() => app.extensionManager.command.execute('Comfy.NewBlankWorkflow')")
    opened.page.wait_for_function("() => app.graph.nodes.length < 15")
    opened.page.evaluate("() => app.extensionManager.command.execute('Workspace.PreviousOpenedWorkflow')")
    opened.page.wait_for_function(f"({SHOWN})() === 8")
    assert opened.page.evaluate(PRESSED) == ["4"]


def test_the_canvas_is_zoomed_and_moved_over_the_sheet_too(opened: Frontend, tmp_path: Path) -> None:
    opened.load(template())
    opened.run()
    opened.screenshot(tmp_path / "graph.png")
    page, view = opened.page, "() => [app.canvas.ds.scale, ...app.canvas.ds.offset]"
    page.locator('rect[aria-label="4"]').hover()
    scale, *offset = page.evaluate(view)
    page.mouse.wheel(0, -100)
    page.wait_for_function("before => app.canvas.ds.scale > before", arg=scale)
    page.locator('rect[aria-label="4"]').hover()
    scale, *offset = page.evaluate(view)
    box = page.locator('rect[aria-label="4"]').bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down(button="middle")
    page.mouse.move(x + 30, y + 20, steps=4)
    page.mouse.up(button="middle")
    page.evaluate(NEXT_FRAMES)
    moved = page.evaluate(view)
    assert [moved[1] - offset[0], moved[2] - offset[1]] == pytest.approx([30 / scale, 20 / scale], abs=1)
    assert page.evaluate(FIELD) == ""


def test_a_field_that_another_node_fills_in_is_left_alone(opened: Frontend) -> None:
    opened.load(template(SemblancePickImages="3"))
    opened.run()
    opened.page.evaluate(
        """() => {
            const source = LiteGraph.createNode('PrimitiveString')
            app.graph.add(source)
            const pick = app.graph.nodes.find(node => node.type === 'SemblancePickImages')
            source.connect(0, pick, pick.inputs.findIndex(input => input.name === 'picked'))
        }"""
    )
    opened.page.locator('rect[aria-label="5"]').dispatch_event("click")
    assert opened.page.evaluate(FIELD) == "3"


def test_without_the_script_the_sheet_is_a_plain_picture_and_the_field_picks(
    frontend: Frontend, comfyui: ComfyUIServer, tmp_path: Path
) -> None:
    frontend.page.route("**/pick.js", lambda route: route.abort())
    try:
        frontend.start(comfyui.url)
        frontend.load(template(SemblancePickImages="7, 3"))
        frontend.run()
        frontend.screenshot(tmp_path / "plain.png")  # what is out of sight is not drawn
        picture = "app.graph.nodes.find(node => node.type === 'SemblancePickImages').imgs?.[0]"
        frontend.page.wait_for_function(WHEN_DRAWN % f"{picture}?.naturalWidth > 500")
        assert frontend.page.evaluate(SHOWN) == 0
        saved = "app.nodeOutputs[app.graph.nodes.find(node => node.type === 'SaveImage').id]?.images.length"
        frontend.page.wait_for_function(f"() => {saved} === 2")
    finally:
        frontend.page.unroute("**/pick.js")
        frontend.start(comfyui.url)
