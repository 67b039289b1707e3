"""What was learnt by a tuning that did not come to its end."""

from __future__ import annotations

import logging

from ...attention.adapters.style_adapter import StyleAdapter
from ...version import VERSION
from ..display import tell
from ..files import UnwritableFile
from .adapter_files import CONTENTS, save_adapter

NAME = "unfinished"


def keep_unfinished(adapter: StyleAdapter) -> None:
    """Writes an adapter beside those that were saved, and tells its name. It never hides why the tuning ended."""
    try:
        file = save_adapter(adapter, NAME, VERSION, CONTENTS[0]).name
    except (UnwritableFile, OSError) as fault:
        logging.warning("Semblance: what was learnt until now could not be kept: %s", fault)
        return
    steps = adapter.state.step if adapter.state else 0
    tell(
        f"The tuning stopped after {steps} steps. What was learnt is kept as '{file}' in models/semblance/adapters: "
        "open it with Load Style Adapter and connect it to continue_from of Tune Style."
    )
