"""Text shown on a node."""

from __future__ import annotations

from typing import Any


def show_text(node_id: str | None, text: str) -> None:
    """Shows `text` on the node in the browser. Without a server or a browser nothing happens."""
    from server import PromptServer  # only there once ComfyUI runs as a server

    server: Any = getattr(PromptServer, "instance", None)
    if server is not None and node_id is not None:
        server.send_progress_text(text, node_id)
