"""Nodes of IPAdapter_plus that ComfyUI offers to replace by ours, in workflows that are opened or posted."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import ComfyAPI, io

from ..host.replacement.register import listen_to_prompts
from ..host.replacement.table import REPLACEMENTS, Replacement


async def register_replacements() -> None:
    """Tells the frontend of every replacement, and has prompts replaced as they are posted. Without a server, nothing.

    Both, because of a posted prompt that lacks an optional link ComfyUI makes an error by the first alone.
    """
    if listen_to_prompts():
        for old_id, entry in REPLACEMENTS.items():
            await ComfyAPI().node_replacement.register(for_frontend(old_id, entry))


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
