"""Ten workflows for the nodes of ComfyUI_IPAdapter_plus, as the frontend saves them and as the API takes them."""

from __future__ import annotations

import json
from typing import Any

from semblance.harness.pinned import ROOT
from semblance.harness.prompts import Prompt

FOLDER = ROOT / "tests" / "workflows" / "ipadapter_plus"
SIDE, STEPS = 64, 2
NAMES = sorted(path.name.removesuffix(".api.json") for path in FOLDER.glob("*.api.json"))


def posted(name: str) -> Prompt:
    """The workflow as a script posts it."""
    return _read(f"{name}.api.json")


def saved(name: str) -> dict[str, Any]:
    """The workflow as a person opens it."""
    return _read(f"{name}.json")


def small(prompt: Prompt) -> Prompt:
    """The prompt at a size and number of steps for tiny models."""
    fitting = {"EmptyLatentImage": {"width": SIDE, "height": SIDE}, "KSampler": {"steps": STEPS}}
    return {
        number: {**node, "inputs": {**node["inputs"], **fitting.get(node["class_type"], {})}}
        for number, node in prompt.items()
    }


def small_saved(workflow: dict[str, Any]) -> dict[str, Any]:
    """The same of a workflow as the frontend saves it."""
    for node in workflow["nodes"]:
        if node["type"] == "EmptyLatentImage":
            node["widgets_values"][:2] = [SIDE, SIDE]
        if node["type"] == "KSampler":
            node["widgets_values"][2] = STEPS
    return workflow


def without_meta(prompt: Prompt) -> Prompt:
    return {number: {key: value for key, value in node.items() if key != "_meta"} for number, node in prompt.items()}


def sent_unreplaced(name: str, old: set[str]) -> dict[str, Any]:
    """The request of the frontend's Run button where the `old` nodes are neither known nor replaced.

    As ComfyUI's frontend 1.47.12 makes it: such a node has no class, and its widgets have places instead of names.
    """
    workflow, prompt = saved(name), {}
    widgets = {str(node["id"]): node.get("widgets_values", []) for node in workflow["nodes"]}
    for number, node in posted(name).items():
        if node["class_type"] in old:
            values = {f"UNKNOWN_{place}" if place else "UNKNOWN": value for place, value in enumerate(widgets[number])}
            links = {key: value for key, value in node["inputs"].items() if isinstance(value, list)}
            node = {"inputs": {**values, **links}, "_meta": {}}
        prompt[number] = node
    return {"prompt": prompt, "extra_data": {"extra_pnginfo": {"workflow": workflow}}}


def _read(file: str) -> dict[str, Any]:
    return json.loads((FOLDER / file).read_text(encoding="utf-8"))
