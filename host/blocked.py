"""Outputs that a node does not have every time."""

from __future__ import annotations

from typing import Any

from comfy_execution.graph_utils import ExecutionBlocker


def not_made(reason: str) -> Any:
    """The value of an output that was not made: ComfyUI shows `reason` on a node that asks for it, and stops there."""
    return ExecutionBlocker(reason)
