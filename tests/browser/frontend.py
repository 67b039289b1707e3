"""ComfyUI's own frontend in headless Chromium: opens a workflow, says what is wrong with it, shows it, converts it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, Route, sync_playwright

from semblance.harness.prompts import History, Prompt, prompt_refusal, raise_for_red_node
from semblance.harness.server import ComfyUIServer

Workflow = dict[str, Any]
"""A workflow in the form the frontend saves."""

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# A user past the greeting, with nothing floating over the graph.
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.InstalledVersion": "1.47.12",
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasInfo": False,
    "Comfy.Graph.CanvasMenu": False,
    "Comfy.RightSidePanel.ShowErrorsTab": False,
    "Comfy.Workflow.ShowMissingModelsWarning": False,
}
START_TIMEOUT_MS = RUN_TIMEOUT_MS = 120_000
PAUSE_MS = 200
MARGIN = 60  # pixels around a graph in its screenshot
LARGEST_VIEW = (2400, 1600)  # pixels

FOCUS = "app.extensionManager.command.execute('Workspace.ToggleFocusMode')"  # hides or shows all panels
NEXT_FRAMES = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
GRAPH = """() => ({
    nodes: app.graph.nodes.map(node => ({
        id: String(node.id),
        type: node.type,
        known: node.type in LiteGraph.registered_node_types,
        red: Boolean(node.has_errors),
        idle: node.mode === LiteGraph.NEVER || node.mode === 4,
        required: Object.keys(node.constructor.nodeData?.input?.required ?? {}),
        inputs: (node.inputs ?? []).map(input => ({name: input.name, link: input.link, widget: Boolean(input.widget)})),
    })),
    links: [...app.graph.links.values()].map(
        link => [link.id, String(link.origin_id), link.origin_slot, String(link.target_id), link.target_slot]),
})"""
RUN = """async () => {
    const { api } = await import('/scripts/api.js')
    const executed = []
    const note = ({ detail }) => detail && executed.push(String(detail))
    api.addEventListener('executing', note)
    try {
        await new Promise((done, failed) => {
            api.addEventListener('execution_success', done, { once: true })
            api.addEventListener('execution_error', ({ detail }) => failed(detail.exception_message), { once: true })
            app.queuePrompt(0).then(queued => queued === false && failed('The prompt was refused.'))
        })
    } finally {
        api.removeEventListener('executing', note)
    }
    return executed
}"""
BOUNDS = """() => {
    const boxes = [...app.graph.nodes, ...app.graph.groups].map(item => item.boundingRect ?? item._bounding)
    const left = Math.min(...boxes.map(box => box[0]))
    const top = Math.min(...boxes.map(box => box[1]))
    const right = Math.max(...boxes.map(box => box[0] + box[2]))
    const bottom = Math.max(...boxes.map(box => box[1] + box[3]))
    return [left, top, right - left, bottom - top]
}"""
LOOK_AT = """([left, top, scale]) => {
    app.canvas.ds.scale = scale
    app.canvas.ds.offset[0] = -left
    app.canvas.ds.offset[1] = -top
    app.canvas.setDirty(true, true)
}"""
TO_SUBGRAPH = "kinds => app.graph.convertToSubgraph(new Set(app.graph.nodes.filter(node => kinds.includes(node.type))))"


class BrowserUnavailable(RuntimeError):
    """There is no Chromium to run the frontend in."""


def find_browser() -> str:
    """The path of the system's Chromium."""
    if named := os.environ.get("CHROMIUM_PATH"):
        if not os.access(named, os.X_OK):
            raise BrowserUnavailable(f"CHROMIUM_PATH names {named}, which is no program that can be run.")
        return named
    for name in BROWSERS:
        if found := shutil.which(name):
            return found
    raise BrowserUnavailable(
        f"No browser for the frontend: none of {', '.join(BROWSERS)} is on the PATH. "
        "Install Chromium (on Debian: apt-get install chromium), or set CHROMIUM_PATH to it."
    )


class Frontend:
    """One open page of the frontend."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self._saved: Workflow = {}

    def load(self, workflow: Workflow) -> None:
        """Opens `workflow` as the Open command does and waits until it stands."""
        self._saved = workflow
        self.page.evaluate("workflow => app.loadGraphData(workflow)", workflow)
        self.page.wait_for_load_state("networkidle")
        self.page.evaluate(NEXT_FRAMES)

    def start(self, address: str) -> None:
        """Opens the frontend at `address`, anew where it is open already, with nothing over the graph."""
        self.page.goto(address)
        self.page.wait_for_function("window.app?.vueAppReady && app.graph", timeout=START_TIMEOUT_MS)
        self.page.evaluate("app.extensionManager.command.execute('Workspace.ToggleFocusMode')")

    def run(self) -> list[str]:
        """Runs the loaded workflow as the Run button does; the numbers of the nodes that were executed, in order.

        Those that ComfyUI took from its cache are not among them.
        """
        return self.page.evaluate(RUN)

    def set(self, name: str, value: Any) -> None:
        """Changes one of the user's settings."""
        self.page.evaluate("([name, value]) => app.extensionManager.setting.set(name, value)", [name, value])
        self.page.evaluate(NEXT_FRAMES)

    def faults(self) -> list[str]:
        """What a user would stumble over in the loaded workflow, one sentence each; empty when all is well."""
        graph = self.page.evaluate(GRAPH)
        node_faults = [fault for node in graph["nodes"] for fault in faults_of_node(node)]
        return faults_of_nodes_lost(self._saved, graph) + node_faults + faults_of_links(self._saved, graph)

    def api_prompt(self) -> Prompt:
        """The loaded workflow in API form, as the Run button sends it."""
        return self.page.evaluate("async () => (await app.graphToPrompt()).output")

    @contextmanager
    def showing_errors(self) -> Iterator[None]:
        """The page as a person has it, with panels, and with the one that lists what is wrong with a workflow."""
        self._show_errors(True)
        try:
            yield
        finally:
            self._show_errors(False)

    def replace_missing_nodes(self) -> None:
        """Presses Replace All in the panel of errors, as a person does; needs `showing_errors`."""
        details = self.page.get_by_test_id("error-overlay-see-errors")
        offer = self.page.get_by_test_id("error-group-swap-nodes")
        details.or_(offer).first.wait_for()  # the panel may be open already
        if not offer.is_visible():
            details.click()
        offer.get_by_role("button", name="Replace All").click()
        offer.wait_for(state="detached")
        self._saved = self.page.evaluate("app.graph.serialize()")  # links have other numbers of sockets now

    def press_run(self, server: ComfyUIServer) -> History:
        """Presses Run and waits for the end; a refusal or a red node raises PromptFailed."""
        with self.page.expect_response("**/prompt") as answer:
            self.page.get_by_test_id("queue-button").click()
        answered = answer.value.json()
        if "prompt_id" not in answered:
            raise prompt_refusal(answered, {})
        for _ in range(RUN_TIMEOUT_MS // PAUSE_MS):
            if history := server.get(f"/history/{answered['prompt_id']}"):
                raise_for_red_node(history[answered["prompt_id"]])
                return history[answered["prompt_id"]]
            self.page.wait_for_timeout(PAUSE_MS)
        raise TimeoutError("The prompt did not end in time.")

    def put_into_subgraph(self, *kinds: str) -> None:
        """Makes one subgraph of the nodes of these types, as Convert to Subgraph does, and opens the result."""
        self.page.evaluate(TO_SUBGRAPH, kinds)
        self.load(self.page.evaluate("app.graph.serialize()"))

    def refresh(self) -> None:
        """Presses R: the lists of files are read again."""
        self.page.evaluate("app.refreshComboInNodes()")

    def screenshot(self, path: Path) -> Path:
        """Saves a picture of the loaded graph, all of it and nothing but it."""
        left, top, width, height = self.page.evaluate(BOUNDS)
        width, height = width + 2 * MARGIN, height + 2 * MARGIN
        scale = min(1.0, LARGEST_VIEW[0] / width, LARGEST_VIEW[1] / height)
        self.page.set_viewport_size({"width": round(width * scale), "height": round(height * scale)})
        self.page.evaluate(NEXT_FRAMES)
        self.page.evaluate(LOOK_AT, [left - MARGIN, top - MARGIN, scale])
        self.page.evaluate(NEXT_FRAMES)
        self.page.screenshot(path=path)
        return path

    def _show_errors(self, shown: bool) -> None:
        setting = "async shown => app.extensionManager.setting.set('Comfy.RightSidePanel.ShowErrorsTab', shown)"
        self.page.evaluate(setting, shown)
        self.page.evaluate(FOCUS)


def faults_of_nodes_lost(saved: Workflow, graph: dict[str, Any]) -> list[str]:
    loaded = {node["id"] for node in graph["nodes"]}
    lost = [node for node in saved["nodes"] if str(node["id"]) not in loaded]
    return [f"{node['type']} (node {node['id']}) was not loaded" for node in lost]


def faults_of_node(node: dict[str, Any]) -> list[str]:
    name = f"{node['type']} (node {node['id']})"
    if not node["known"]:
        return [f"{name} is not a node this ComfyUI knows"]
    if node["idle"]:
        return []
    red = [f"{name} is red"] if node["red"] else []
    return red + [
        f"{name} misses its input {slot['name']}"
        for slot in node["inputs"]
        if slot["name"] in node["required"] and slot["link"] is None and not slot["widget"]
    ]


def faults_of_links(saved: Workflow, graph: dict[str, Any]) -> list[str]:
    """Links that were saved and did not come back, and inputs whose link leads nowhere."""
    loaded = {link[0]: link[1:] for link in graph["links"]}
    lost = [
        f"link {link} from node {source} to node {target} was lost"
        for link, source, source_slot, target, target_slot, _ in saved["links"]
        if loaded.get(link) != [str(source), source_slot, str(target), target_slot]
    ]
    dangling = [
        f"{node['type']} (node {node['id']}): the link of its input {slot['name']} leads nowhere"
        for node in graph["nodes"]
        for slot in node["inputs"]
        if slot["link"] is not None and slot["link"] not in loaded
    ]
    return lost + dangling


@contextmanager
def open_frontend(server: ComfyUIServer) -> Iterator[Frontend]:
    """The frontend of `server` in a browser of its own, talking to nobody else."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=FLAGS)
        try:
            page = browser.new_page()
            page.route("**/*", lambda route: serve_only(server.url, route))
            page.request.post(f"{server.url}/settings", data=SETTINGS)
            frontend = Frontend(page)
            frontend.start(server.url)
            yield frontend
        finally:
            browser.close()


def serve_only(address: str, route: Route) -> None:
    if route.request.url.startswith((address, "data:", "blob:")):
        route.continue_()
    else:
        route.abort()
