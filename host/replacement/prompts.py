"""Prompts that hold nodes of IPAdapter_plus, posted where that pack is not installed: they run as our nodes.

ComfyUI can replace nodes by itself, but of a prompt that lacks an optional link or a title it makes an error, and its
result for two replaced nodes in a row hangs on the order of a set. So this comes before it and leaves it nothing to do.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Mapping
from typing import Any

from .table import REPLACEMENTS, Replacement
from .workflows import widget_values

Prompt = dict[str, Any]
"""Nodes by number, as the API takes them."""
ABSENT: list[Any] = []
"""An input on which ComfyUI refuses the prompt, naming the input. Without it an optional input's default would act."""


def on_prompt(request: dict[str, Any]) -> dict[str, Any]:
    """What ComfyUI calls with the body of every request to run a prompt, before it looks at the prompt itself."""
    import nodes  # ComfyUI's, complete only once all packs are loaded

    try:
        return replaced(request, nodes.NODE_CLASS_MAPPINGS)
    except Exception:  # whatever is odd in a prompt, ComfyUI has a sentence for it
        logging.exception("Semblance: the prompt was left as it is, because its nodes could not be replaced.")
        return request


def replaced(
    request: dict[str, Any], installed: Container[str], table: Mapping[str, Replacement] = REPLACEMENTS
) -> dict[str, Any]:
    """The request with every old node replaced that is not `installed` and whose replacement is.

    What it was given stays as it is. A request without such nodes is returned itself.
    """
    prompt = request.get("prompt")
    old = _old_nodes(prompt, installed, table)
    if not isinstance(prompt, dict) or not old:
        return request
    workflow = _workflow_of(request)
    new = {number: _replacement(number, prompt[number], entry, workflow) for number, entry in old.items()}
    logging.info("Semblance: nodes of IPAdapter_plus run as Semblance's: %s.", ", ".join(old))
    return {**request, "prompt": {**prompt, **new}}


def _old_nodes(prompt: Any, installed: Container[str], table: Mapping[str, Replacement]) -> dict[str, Replacement]:
    """The nodes to replace, by number; odd ones are not among them."""
    found: dict[str, Replacement] = {}
    for number, node in prompt.items() if isinstance(prompt, dict) else ():
        kind = node.get("class_type") if isinstance(node, dict) else None
        if not isinstance(kind, str) or kind in installed or not isinstance(node.get("inputs"), dict):
            continue
        entry = table.get(kind)
        if entry is not None and entry.node in installed:
            found[number] = entry
    return found


def _replacement(number: str, old: dict[str, Any], entry: Replacement, workflow: Mapping[str, Any]) -> dict[str, Any]:
    """Our node with what the old one was given. What that lacked is lacking here too, so that ComfyUI says so."""
    kind = old["class_type"]
    given = {**widget_values(workflow, number, kind, entry.widgets), **old["inputs"]}
    inputs = {ours: given[theirs] for ours, theirs in entry.inputs.items() if theirs in given}
    inputs |= entry.values
    inputs |= {ours: ABSENT for ours in entry.demanded if ours not in inputs}
    if unknown := sorted(given.keys() - entry.inputs.values() - set(entry.left_out)):
        logging.warning("Semblance: %s (node %s) has no input %s.", kind, number, ", ".join(unknown))
    return {**old, "class_type": entry.node, "inputs": inputs, "_meta": old.get("_meta") or {"title": kind}}


def _workflow_of(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """The workflow as the frontend saves it, where the request brings it along."""
    found: Any = request
    for key in ("extra_data", "extra_pnginfo", "workflow"):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}
