"""What is on a MODEL, in words: our patches, and what other packs put there."""

from __future__ import annotations

from typing import Any

from .carried import carried_patches
from .model import map_model
from .neighbours import neighbours
from .transformer import transformer_of


def describe(model: Any) -> str:
    """What is on this MODEL, where and in which order, one thing a line; what other packs put there is named too."""
    options = model.model_options["transformer_options"]
    ours = [f"{place}. {patch!r}" for place, patch in enumerate(carried_patches(options), start=1)]
    return "\n".join([_kind(model), *(ours or ["No Semblance patch."]), *neighbours(model, model.model_options)])


def _kind(model: Any) -> str:
    if (transformer := transformer_of(model.model)) is not None:
        return f"{transformer.name}: {transformer.blocks} blocks with attention, {len(transformer.sites)} layers"
    try:
        known = map_model(model)
    except ValueError:
        return f"{type(model.model).__name__}: a family that Semblance does not know"
    return f"{known.name}: {len(known.family.blocks)} blocks with attention, {len(known.sites)} layers"
