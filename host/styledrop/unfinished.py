"""What was learnt by a tuning that did not come to its end."""

from __future__ import annotations

from ...attention.adapters.style_adapter import StyleAdapter
from ...version import VERSION
from ..display import tell
from .adapter_files import CONTENTS, save_adapter

NAME = "unfinished"


def keep_unfinished(adapter: StyleAdapter) -> None:
    """Writes an adapter beside those that were saved, and tells its name. Raises like `save_adapter`."""
    file = save_adapter(adapter, NAME, VERSION, CONTENTS[0]).name
    steps = adapter.state.step if adapter.state else 0
    tell(
        f"The tuning stopped after {steps} steps. What was learnt is kept as '{file}' in models/semblance/adapters: "
        "open it with Load Style Adapter and connect it to continue_from of Tune Style."
    )
