"""Weights that change from frame to frame, and the pictures that go with them, as in ComfyUI_IPAdapter_plus."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Timing = Literal["custom", "linear", "ease_in_out", "ease_in", "ease_out", "random"]
TIMINGS: tuple[Timing, ...] = get_args(Timing)
Method = Literal["full batch", "shift batches", "alternate batches"]
METHODS: tuple[Method, ...] = get_args(Method)


@dataclass(frozen=True)
class FrameSettings:
    """How weights run over frames; the value of a WEIGHTS socket."""
