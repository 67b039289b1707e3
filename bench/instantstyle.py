"""InstantStyle on UNets of the real widths."""

from __future__ import annotations

from functools import partial
from typing import Any

from .cost import Run
from .models import Family, real_adapter, sample


def instantstyle_runs(model: Any, kind: Family, pixels: int) -> dict[str, Run]:
    """The plain model and what InstantStyle makes of it, each a run of the sampler, plain first."""
    base, plus = real_adapter(model, kind, "base"), real_adapter(model, kind, "plus")
    everywhere = base.patch(model, "all")
    styled = {
        "plain": model,
        "style block": base.patch(model, "style"),
        "all blocks": everywhere,
        "two adapters (base and plus), all blocks": plus.patch(everywhere, "all"),
    }
    return {name: partial(sample, patched, kind, pixels // 8) for name, patched in styled.items()}
