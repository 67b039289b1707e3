"""InstantStyle on UNets of the real widths."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from .models import Family, real_adapter, real_model, sample

Run = Callable[[], object]


def instantstyle_runs(kind: Family, pixels: int, dtype: torch.dtype) -> dict[str, Run]:
    """The plain model and what InstantStyle makes of it, each a run of the sampler, plain first."""
    model = real_model(kind, dtype)
    base, plus = real_adapter(model, kind, "base"), real_adapter(model, kind, "plus")
    everywhere = base.patch(model, "all")
    styled = {
        "plain": model,
        "style block": base.patch(model, "style"),
        "all blocks": everywhere,
        "two adapters (base and plus), all blocks": plus.patch(everywhere, "all"),
    }
    return {name: partial(sample, patched, kind, pixels // 8) for name, patched in styled.items()}
