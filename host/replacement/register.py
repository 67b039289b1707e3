"""Tells a running ComfyUI which of our nodes stand for nodes of IPAdapter_plus."""

from __future__ import annotations

import sys
from typing import Any

from comfy_api.latest import io

from .prompts import on_prompt
from .table import REPLACEMENTS, Replacement


def register_replacements() -> None:
    """For workflows that are opened, in the frontend; and for prompts that are posted. Without a server, nothing."""
    # Not imported: where no server runs, that would take seconds.
    server: Any = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if server is None or on_prompt in server.on_prompt_handlers:
        return
    for old_id, entry in REPLACEMENTS.items():
        server.node_replace_manager.register(for_frontend(old_id, entry))
    server.add_on_prompt_handler(on_prompt)


def for_frontend(old_id: str, entry: Replacement) -> io.NodeReplace:
    """The entry as the frontend reads it. Where a mapping is empty it would guess one, so none is."""
    taken: list[Any] = [{"new_id": ours, "old_id": theirs} for ours, theirs in entry.inputs.items()]
    fixed: list[Any] = [{"new_id": ours, "set_value": value} for ours, value in entry.values.items()]
    return io.NodeReplace(
        new_node_id=entry.node,
        old_node_id=old_id,
        old_widget_ids=list(entry.widgets),
        input_mapping=taken + fixed,
        output_mapping=[{"new_idx": index, "old_idx": index} for index in range(entry.outputs)],
    )
