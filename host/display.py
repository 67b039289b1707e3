"""Text shown on a node."""

from __future__ import annotations

import logging
from typing import Any

from comfy_execution.utils import get_executing_context


def show_text(node_id: str | None, text: str) -> None:
    """Shows `text` on the node in the browser. Without a server or a browser nothing happens."""
    if node_id is None:
        return
    from server import PromptServer  # only there once ComfyUI runs as a server

    server: Any = getattr(PromptServer, "instance", None)
    if server is not None:
        server.send_progress_text(text, node_id)


def tell(text: str) -> None:
    """Says `text` in the log and on the node that is being executed, such as a sampler."""
    logging.warning("Semblance: %s", text)
    node = get_executing_context()
    show_text(None if node is None else node.node_id, text)
