"""Whether this ComfyUI is new enough. Imported before anything that an older one lacks."""

from __future__ import annotations

import re

from ..version import OLDEST_COMFYUI


def refusal() -> str | None:
    """The sentence for a ComfyUI that is too old, or None."""
    try:
        from comfyui_version import __version__ as found
    except ImportError:  # it did not name its version yet
        return _too_old("older than 0.3.13")
    numbers = re.match(r"(\d+)\.(\d+)\.(\d+)", found)
    fits = numbers is None or tuple(map(int, numbers.groups())) >= OLDEST_COMFYUI
    return None if fits else _too_old(found)


def _too_old(found: str) -> str:
    oldest = ".".join(map(str, OLDEST_COMFYUI))
    return f"Semblance needs ComfyUI {oldest} or later, and this one is {found}. Update ComfyUI to use its nodes."
