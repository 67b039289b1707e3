"""The widgets of a node in a workflow as the frontend saves it: values without names, in the order of the widgets.

For a node it does not know, the frontend sends the links of a prompt but not these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def widget_values(workflow: Mapping[str, Any], number: str, kind: str, names: Sequence[str]) -> dict[str, Any]:
    """The values of the node with this number in the prompt, by the widgets' `names`.

    Empty where the workflow has no such node of this `kind`. A widget that is linked is left out: its value is old.
    """
    node = _node(workflow, number)
    if node.get("type") != kind:
        return {}
    values = node.get("widgets_values")
    named = values if isinstance(values, Mapping) else dict(zip(names, _list(values), strict=False))
    sockets = [socket for socket in _list(node.get("inputs")) if isinstance(socket, Mapping)]
    linked = {socket.get("name") for socket in sockets if socket.get("link") is not None}
    return {name: value for name, value in named.items() if name in names and name not in linked}


def _node(workflow: Mapping[str, Any], number: str) -> Mapping[str, Any]:
    """`12:5` is node 5 of the subgraph that node 12 stands for."""
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
