"""In the frontend: a field for a folder to which pictures may be connected instead, and the report on the node."""

from __future__ import annotations

from pathlib import Path

import pytest

from semblance.harness.server import ComfyUIServer
from semblance.tests.browser.frontend import Frontend
from semblance.tests.support.evaluation import write_pictures
from semblance.tests.support.graphs import picture
from semblance.tests.support.metric_weights import put, saved_lpips

BUILD = """async kind => {
    app.graph.clear();
    const [white, measure] = ["EmptyImage", kind].map(name => LiteGraph.createNode(name));
    for (const node of [white, measure]) app.graph.add(node);
    white.pos = [20, 60];
    measure.pos = [420, 60];
    return measure.widgets.map(widget => [widget.name, widget.type]);
}"""
CONNECT = """([input, folder]) => {
    const [white, measure] = app.graph.nodes;
    measure.widgets.find(widget => widget.name === folder).value = "output/content";
    white.connect(0, measure, measure.inputs.findIndex(slot => slot.name === input));
    for (const [name, value] of Object.entries({width: 80, height: 80, batch_size: 2}))
        white.widgets.find(widget => widget.name === name).value = value;
}"""


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("SemblanceLPIPS", ["a", "b"]),
        ("SemblanceFID", ["a", "b"]),
        ("SemblanceArtFID", ["content", "style", "stylised"]),
        ("SemblanceCFSD", ["content", "stylised"]),
    ],
)
def test_each_input_for_pictures_is_a_field_for_a_folder(frontend: Frontend, kind: str, fields: list[str]) -> None:
    widgets = dict(frontend.page.evaluate(BUILD, kind))
    assert [widgets.get(name) for name in fields] == ["text"] * len(fields)


def test_pictures_are_connected_in_place_of_a_folder_and_the_report_stands_on_the_node(
    frontend: Frontend, comfyui: ComfyUIServer, tmp_path: Path
) -> None:
    put(saved_lpips("alex"), comfyui.models("semblance/metrics"), "alexnet.safetensors")
    write_pictures(comfyui.base_directory / "output" / "content", picture(1, 80, 80, 2))
    frontend.page.evaluate(BUILD, "SemblanceLPIPS")
    frontend.page.evaluate(CONNECT, ["b", "a"])
    prompt = frontend.api_prompt()
    (measure,) = (node for node in prompt.values() if node["class_type"] == "SemblanceLPIPS")
    (white,) = (name for name, node in prompt.items() if node["class_type"] == "EmptyImage")
    assert measure["inputs"] == {"a": "output/content", "b": [white, 0], "network": "alex", "short_side": 0}
    frontend.page.evaluate("app.queuePrompt(0)")
    frontend.page.wait_for_function(
        "app.graph.nodes.some(node => (node.widgets ?? []).some(w => String(w.value).includes('over 2 pairs')))",
        timeout=60_000,
    )
    frontend.screenshot(tmp_path / "lpips.png")
