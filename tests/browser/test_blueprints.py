"""The blueprints of the pack stand in ComfyUI's search, and what they put down runs."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from semblance.harness.library import ROOT
from semblance.harness.server import ComfyUIServer
from semblance.tests.browser.frontend import Frontend

EMPTY = {"nodes": [], "links": [], "version": 0.4}
ROUND = "StyleDrop Round"
WIRE = """name => {
    const round = app.graph.nodes.find(node => node.title === name)
    const add = (type, values) => {
        const node = LiteGraph.createNode(type)
        app.graph.add(node)
        set(node, values)
        return node
    }
    const set = (node, values) => {
        for (const [name, value] of Object.entries(values))
            node.widgets.find(widget => widget.name === name).value = value
    }
    const connect = (from, output, to, input) =>
        from.connect(from.outputs.findIndex(o => o.name === output), to, to.inputs.findIndex(i => i.name === input))
    const demo = add('SemblanceLoadDemo', { topology: 'SD 1.5' })
    const tune = add('SemblanceTuneStyle', { content_words: 'a cactus on the left', steps: 1 })
    const kept = add('SemblanceSaveStyleAdapter', { name: 'after a round' })
    const seen = add('PreviewImage', {})
    set(round, { prompts: 'a cat\\na fish', width: 128, height: 128, count: 1, floor: -1, steps: 1 })
    for (const socket of ['model', 'clip', 'vae']) {
        connect(demo, socket, tune, socket)
        connect(demo, socket, round, socket)
    }
    connect(demo, 'style_picture', tune, 'pictures')
    connect(demo, 'style_picture', round, 'style_picture')
    connect(demo, 'clip_vision', round, 'clip_vision')
    connect(tune, 'style_adapter', round, 'style_adapter')
    connect(round, 'style_adapter', kept, 'style_adapter')
    connect(round, 'picks', seen, 'images')
}"""


def test_a_round_of_styledrop_is_found_by_search_put_down_and_run(
    frontend: Frontend, comfyui: ComfyUIServer, tmp_path: Path
) -> None:
    page = frontend.page
    frontend.load(EMPTY)
    page.evaluate("app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
    page.get_by_role("combobox").first.wait_for()
    page.keyboard.type(ROUND)
    page.get_by_text("Blueprint", exact=True).first.wait_for()
    page.keyboard.press("Enter")
    page.wait_for_function("name => app.graph.nodes.some(node => node.title === name)", arg=ROUND)
    page.mouse.click(640, 360)
    page.evaluate(WIRE, ROUND)
    assert frontend.faults() == []
    executed = frontend.run()
    assert len(executed) > 12
    with Image.open(frontend.screenshot(tmp_path / "round.png")) as picture:
        assert min(picture.size) > 300


def test_a_blueprint_tells_what_it_is_for() -> None:
    """As ComfyUI's own do, in search and in the list of nodes."""
    for path in (ROOT / "subgraphs").glob("*.json"):
        (inside,) = json.loads(path.read_text(encoding="utf-8"))["definitions"]["subgraphs"]
        assert inside["name"] == path.stem and inside["category"] == "Semblance" and len(inside["description"]) > 80
