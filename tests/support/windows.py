"""A MODEL that sees a batch part by part."""

from __future__ import annotations

from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_context_windows import ContextWindowsManualNode


def windowed(model: ModelPatcher, length: int = 2, anchor: bool = False, **settings: Any) -> ModelPatcher:
    """`model` seen through windows of `length` images, as the host's own node makes them."""
    chosen = {
        "context_overlap": length // 2,
        "context_schedule": "standard_static",
        "context_stride": 1,
        "closed_loop": False,
        "fuse_method": "pyramid",
        "dim": 0,
        "freenoise": False,
    } | settings
    made: Any = ContextWindowsManualNode.execute(model, context_length=length, causal_window_fix=anchor, **chosen)
    return made[0]
