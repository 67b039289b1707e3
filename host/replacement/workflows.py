"""Values of a node that ComfyUI does not know: the frontend keeps and sends its widgets without their names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

NAMELESS = re.compile(r"UNKNOWN(?:_(\d+))?")
"""What the frontend calls the widgets of a node it does not know: UNKNOWN, UNKNOWN_1, UNKNOWN_2 ..."""


def given_inputs(
    inputs: Mapping[str, Any], saved: Mapping[str, Any], kind: str, names: Sequence[str]
) -> dict[str, Any]:
    """The inputs of a node in a prompt, with those of its widgets that came without their `names` or not at all.

    `saved` is the same node in the workflow, where it is of the same `kind`. What a widget that is linked there still
    shows is an old value, and left out.
    """
    saved = saved if saved.get("type") == kind else {}
    places = {name: int(found[1] or 0) for name in inputs if (found := NAMELESS.fullmatch(name))}
    sent = {names[place]: inputs[name] for name, place in places.items() if place < len(names)}
    sockets = [socket for socket in _list(saved.get("inputs")) if isinstance(socket, Mapping)]
    linked = {socket.get("name") for socket in sockets if socket.get("link") is not None}
    shown = {**dict(zip(names, _list(saved.get("widgets_values")), strict=False)), **sent}
    named = {name: value for name, value in inputs.items() if name not in places}
    return {**{name: value for name, value in shown.items() if name not in linked}, **named}


def saved_node(workflow: Mapping[str, Any], number: str) -> Mapping[str, Any]:
    """The node of a saved workflow by its number in the prompt: `12:5` is node 5 of the subgraph that 12 stands for."""
    graph: Mapping[str, Any] = workflow
    definitions = workflow.get("definitions")
    subgraphs = _by_id(definitions.get("subgraphs") if isinstance(definitions, Mapping) else None)
    node: Mapping[str, Any] = {}
    for part in number.split(":"):
        node = _by_id(graph.get("nodes")).get(part, {})
        graph = subgraphs.get(str(node.get("type")), {})
    return node


def _by_id(items: Any) -> dict[str, Mapping[str, Any]]:
    return {str(item.get("id")): item for item in _list(items) if isinstance(item, Mapping)}


def _list(found: Any) -> list[Any]:
    return found if isinstance(found, list) else []
