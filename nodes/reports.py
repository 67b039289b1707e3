"""Outputs of nodes that show a text or a thumbnail on themselves."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..host.display import show_text
from ..host.thumbnails import picture_of


def reported(node: type[io.ComfyNode], report: str, *outputs: Any, thumbnail: str = "") -> io.NodeOutput:
    """The outputs of `node`, which shows the report, and below it the thumbnail (a JPEG data URL) if there is one.

    The node must declare the hidden input `unique_id`.
    """
    show_text(node.hidden.unique_id, report)
    return io.NodeOutput(*outputs, ui=preview(node, thumbnail) or ui.PreviewText(report))


def preview(node: type[io.ComfyNode], thumbnail: str) -> ui.PreviewImage | None:
    """A thumbnail (a JPEG data URL) as `node` shows it, or None if there is none to show."""
    picture = picture_of(thumbnail) if thumbnail else None
    return None if picture is None else ui.PreviewImage(picture, cls=node)
