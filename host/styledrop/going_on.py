"""Where a tuning begins that goes on from an adapter, and what of it is not as if it had never stopped."""

from __future__ import annotations

from ...attention.adapters.style_adapter import StyleAdapter
from .recipe import TuningRecipe

OPTIMISER_FROM = "optimiser_from"
"""The setting that tells before which step AdamW began anew, if not before the first."""


def steps_behind(start: StyleAdapter | None) -> int:
    """How many steps an adapter has behind it, by its tuning state or else by its settings."""
    if start is None:
        return 0
    return start.state.step if start.state else _count(start, "steps")


def optimiser_began(start: StyleAdapter | None) -> int:
    """Before which step, counted from 0, AdamW begins or began to collect its moments."""
    if start is None:
        return 0
    return min(_count(start, OPTIMISER_FROM), start.state.step) if start.state else steps_behind(start)


def differences(start: StyleAdapter | None, recipe: TuningRecipe) -> list[str]:
    """Sentences on why the result will not be that of one tuning, as far as the adapter tells."""
    if start is None:
        return []
    if start.state is None:
        return [
            "The adapter to continue from holds no tuning state, so the optimiser begins anew. Save adapters to go on "
            "from as 'adapter and tuning state'."
        ]
    if start.state.seed != recipe.seed:
        return [
            f"The adapter to continue from was tuned with seed {start.state.seed} and goes on with seed {recipe.seed}, "
            f"so its steps look at other noise than one tuning would. Set seed to {start.state.seed} for the same."
        ]
    return []


def _count(start: StyleAdapter, name: str) -> int:
    found = start.settings.get(name, 0)
    return max(found, 0) if isinstance(found, int) else 0
