"""The host's own nodes that take a MODEL and give one, found in its list and called with their defaults."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import cache
from typing import Any

import nodes


@cache
def model_nodes() -> dict[str, Any]:
    """By name, every node with a MODEL among its inputs and its outputs."""
    asyncio.run(nodes.init_builtin_extra_nodes())
    known = {name: node for name, node in nodes.NODE_CLASS_MAPPINGS.items() if "MODEL" in node.RETURN_TYPES}
    return {
        name: node
        for name, node in sorted(known.items())
        if not node.__module__.startswith("semblance") and any(kind[0] == "MODEL" for kind in inputs_of(node).values())
    }


def inputs_of(node: Any) -> dict[str, Any]:
    return dict(node.INPUT_TYPES().get("required", {}))


def missing_input(node: Any, sockets: Mapping[str, Any]) -> str | None:
    """The type of an input that neither a default nor `sockets` fills, or None."""
    for kind, *settings in inputs_of(node).values():
        if not _is_at(kind, sockets) and _default(kind, settings) is None:
            return "a file" if isinstance(kind, list) or kind == "COMBO" else str(kind)
    return None


def applied(node: Any, sockets: Mapping[str, Any]) -> Any:
    """The MODEL that a node makes, with its defaults and, by type, what lies at its sockets."""
    given = {
        name: sockets[kind] if _is_at(kind, sockets) else _default(kind, settings)
        for name, (kind, *settings) in inputs_of(node).items()
    }
    made = node.execute(**given) if hasattr(node, "define_schema") else getattr(node(), node.FUNCTION)(**given)
    return made[node.RETURN_TYPES.index("MODEL")]


def _is_at(kind: Any, sockets: Mapping[str, Any]) -> bool:
    return isinstance(kind, str) and kind in sockets  # the choices of a list stand in the place of its kind


def _default(kind: Any, settings: list[Any]) -> Any:
    told = settings[0] if settings else {}
    options = kind if isinstance(kind, list) else told.get("options", [])
    return told.get("default", options[0] if options else None)
