"""A style adapter on a MODEL, for any sampler."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...attention.adapters.style_adapter import StyleAdapter
from ...attention.engine.scope import CURVES, Scope
from ...attention.methods.styledrop import StyleDrop
from ..binding.model import ModelMap, add_patch
from .fitting import check_blocks, check_fits
from .lora import add_lora

Scoped = Callable[[ModelMap], Scope]
"""What the user asks for, once the model's blocks are known."""


def apply_adapter(model: Any, adapter: StyleAdapter, strength: float, scoped: Scoped) -> Any:
    """A clone of MODEL with the adapter on it.

    A bottleneck acts on conditional rows alone, in the scope's blocks, window and mask. A LoRA changes the weights and
    so all rows, at all times and places: it takes blocks, and raises ValueError for a window or a mask. Raises
    ValueError too if the adapter does not fit the model.
    """
    scope = scoped(check_fits(adapter, model))
    check_blocks(adapter, scope.blocks)
    if adapter.form == "bottleneck":
        return add_patch(model, StyleDrop(adapter.tensors, scope, strength))
    _check_always(scope)
    return add_lora(model, adapter, strength, scope.blocks)


def _check_always(scope: Scope) -> None:
    window = scope.window
    asked: Mapping[str, bool] = {
        f"start {window.start:g} and end {window.end:g}": (window.start, window.end) != (0.0, 1.0),
        "a curve": window.curve != CURVES["constant"],
        "a mask": scope.mask is not None,
    }
    if any(asked.values()):
        found = " and ".join(filter(asked.get, asked))
        raise ValueError(
            f"This style adapter is a LoRA, which changes the model's weights for the whole run and picture, and so "
            f"{found} cannot hold for it. Leave these as they were, tune a bottleneck, or take StyleDrop Guider, which "
            "keeps to start and end."
        )
