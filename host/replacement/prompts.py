"""Prompts that hold nodes of IPAdapter_plus, posted where that pack is not installed: they run as our nodes.

ComfyUI can replace nodes by itself, but of a prompt that lacks an optional link or a title it makes an error, and its
result for two replaced nodes in a row hangs on the order of a set. So this comes before it and leaves it nothing to do.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Mapping
from importlib import import_module
from typing import Any

from .table import REPLACEMENTS, Replacement
from .workflows import given_inputs, saved_node

Prompt = dict[str, Any]
"""Nodes by number, as the API takes them."""
ABSENT: list[Any] = []
"""An input on which ComfyUI refuses the prompt, naming the input. Without it an optional input's default would act."""


def on_prompt(request: dict[str, Any]) -> dict[str, Any]:
    """What ComfyUI calls with the body of every request to run a prompt, before it looks at the prompt itself."""
    nodes: Any = import_module("nodes")  # ComfyUI's, whose list is complete once all packs are loaded
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
    if not isinstance(prompt, dict):
        return request
    workflow = _workflow_of(request)
    kinds = {number: _kind(number, node, workflow) for number, node in prompt.items()}
    old = {number: kind for number, kind in kinds.items() if _is_missing(kind, installed, table)}
    if not old:
        return request
    new: Prompt = {}
    for number, kind in old.items():
        try:
            new[number] = _replacement(number, prompt[number], kind, table[kind], workflow)
        except Exception:  # one odd node is no reason to leave the others to ComfyUI
            logging.exception("Semblance: %s (node %s) could not be replaced and stays as it is.", kind, number)
    names = ", ".join(f"{old[number]} (node {number})" for number in new)
    logging.info("Semblance: nodes of IPAdapter_plus run as Semblance's: %s.", names)
    return {**request, "prompt": {**prompt, **new}}


def _is_missing(kind: str, installed: Container[str], table: Mapping[str, Replacement]) -> bool:
    return kind in table and kind not in installed and table[kind].node in installed


def _kind(number: str, node: Any, workflow: Mapping[str, Any]) -> str:
    """The class of a node, or an empty word for an odd one. For a node it does not know, the frontend sends none."""
    if not isinstance(node, dict) or not isinstance(node.get("inputs"), dict):
        return ""
    kind = node.get("class_type") or saved_node(workflow, number).get("type")
    return kind if isinstance(kind, str) else ""


def _replacement(
    number: str, old: dict[str, Any], kind: str, entry: Replacement, workflow: Mapping[str, Any]
) -> dict[str, Any]:
    """Our node with what the old one was given. What that lacked is lacking here too, so that ComfyUI says so."""
    given = given_inputs(old["inputs"], saved_node(workflow, number), kind, entry.widgets)
    inputs = {ours: given[theirs] for ours, theirs in entry.inputs.items() if theirs in given}
    inputs |= entry.values
    if lacking := [ours for ours in entry.demanded if ours not in inputs]:
        theirs = ", ".join(entry.inputs[ours] for ours in lacking)
        logging.warning("Semblance: %s (node %s) needs the input %s, which it does not have.", kind, number, theirs)
        inputs |= dict.fromkeys(lacking, ABSENT)
    if unknown := sorted(given.keys() - entry.inputs.values() - set(entry.left_out)):
        logging.warning("Semblance: %s (node %s) has no input %s.", kind, number, ", ".join(unknown))
    return {**old, "class_type": entry.node, "inputs": inputs, "_meta": old.get("_meta") or {"title": kind}}


def _workflow_of(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """The workflow as the frontend saves it, where the request brings it along."""
    found: Any = request
    for key in ("extra_data", "extra_pnginfo", "workflow"):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}
