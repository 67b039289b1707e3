"""What is on a MODEL, in words: our patches, and what other packs put there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .carried import KEY
from .model import map_model, patches_on

GUIDER_SLOTS = ("model_function_wrapper", "sampler_", "denoise_mask_function")
"""How the entries of a MODEL's options begin that hold another node's function around a step."""


def describe(model: Any) -> str:
    """What is on this MODEL, where and in which order, one thing a line; what other packs put there is named too."""
    options = model.model_options["transformer_options"]
    ours = [f"{place}. {patch!r}" for place, patch in enumerate(patches_on(model), start=1)]
    theirs = _foreign_replacements(options) + _foreign_lists(options) + _foreign_slots(model)
    return "\n".join([_kind(model), *(ours or ["No Semblance patch."]), *theirs])


def _kind(model: Any) -> str:
    try:
        known = map_model(model)
    except ValueError:
        return f"{type(model.model).__name__}: a family that Semblance does not know"
    return f"{known.name}: {len(known.family.blocks)} blocks with attention, {len(known.sites)} layers"


def _foreign_replacements(options: Mapping[str, Any]) -> list[str]:
    return [
        f"Another node replaces {slot} of {'.'.join(str(part) for part in key)}: {_name(occupant)}"
        for slot, occupants in options.get("patches_replace", {}).items()
        for key, occupant in occupants.items()
    ]


def _foreign_lists(options: Mapping[str, Any]) -> list[str]:
    return [
        f"Another node patches {name}: {_name(patch)}"
        for name, patches in options.get("patches", {}).items()
        if name != KEY
        for patch in patches
    ]


def _foreign_slots(model: Any) -> list[str]:
    options = model.model_options["transformer_options"]
    wrappers = {
        f"{kind} ({key})"
        for source in (options.get("wrappers", {}), model.wrappers)
        for kind, keyed in source.items()
        for key in keyed
        if key != KEY
    }
    lines = [f"Another node wraps {wrapper}" for wrapper in sorted(wrappers)]
    if "optimized_attention_override" in options:
        lines.append(f"Another node chooses the attention kernel: {_name(options['optimized_attention_override'])}")
    lines += [
        f"Another node sets {slot}: {_name(occupant)}"
        for slot, occupants in model.model_options.items()
        if slot.startswith(GUIDER_SLOTS)
        for occupant in (occupants if isinstance(occupants, list) else [occupants])
    ]
    lines += [f"Another node exchanges {name}: {_name(thing)}" for name, thing in model.object_patches.items()]
    if model.patches:
        lines.append(f"{len(model.patches)} weights are changed (LoRA or merge)")
    return lines


def _name(thing: Any) -> str:
    kind = type(thing)
    named = thing if hasattr(thing, "__qualname__") else kind
    return f"{named.__module__}.{named.__qualname__}"
