"""Has ComfyUI's server ask us about every prompt."""

from __future__ import annotations

import sys
from typing import Any

from .prompts import on_prompt


def listen_to_prompts() -> bool:
    """Registers the handler of prompts, once. False where it is registered already, or no server runs."""
    # Not imported: where no server runs, that would take seconds.
    server: Any = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if server is None or on_prompt in server.on_prompt_handlers:
        return False
    server.add_on_prompt_handler(on_prompt)
    return True
