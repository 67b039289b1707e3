"""What other nodes put on a model, in words: for Show Patches, and for refusals, which do not guess."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from comfy.patcher_extension import WrappersMP

from ..masked.sampler import GUARD
from .carried import KEY

GUIDER_SLOTS = ("model_function_wrapper", "sampler_", "denoise_mask_function", "context_handler")
"""How the entries of a MODEL's options begin that hold another node's function around a step."""
MOST_SHOWN = 12
INSIDE = "diffusion_model."
"""How the names of object patches begin that exchange a part of the network, or a method of it."""
KEYS = {"ADE": "AnimateDiff-Evolved"}
"""Packs whose wrappers have keys that do not say whose they are."""


def neighbours(model: Any, model_options: Mapping[str, Any]) -> list[str]:
    """What other nodes put on a MODEL and into the options it runs with, one thing a line."""
    options = model_options.get("transformer_options", {})
    return _foreign_replacements(options) + _foreign_lists(options) + _foreign_slots(model, model_options)


def also_on(model: Any, model_options: Mapping[str, Any]) -> str:
    """The same as a sentence for the end of a refusal; what runs the model itself comes first."""
    options = model_options.get("transformer_options", {})
    replaced = {
        f"Another node replaces {slot}: {_name(occupant)}": None
        for slot, occupants in options.get("patches_replace", {}).items()
        for occupant in occupants.values()
    }
    lists, slots = _foreign_lists(options), _foreign_slots(model, model_options)
    found = list(dict.fromkeys([*_exchanged(model), *_slots(model_options), *replaced, *lists, *slots]))
    if not found:
        return "Show Patches finds nothing of another node on this model."
    shown = [line.replace("Another node ", "") for line in found[:MOST_SHOWN]]
    more = f", and {len(found) - MOST_SHOWN} more" if len(found) > MOST_SHOWN else ""
    return f"What other nodes do on this model: {'; '.join(shown)}{more}."


def _slots(model_options: Mapping[str, Any]) -> list[str]:
    return [
        f"Another node sets {slot}: {_name(occupant)}"
        for slot, occupants in model_options.items()
        if slot.startswith(GUIDER_SLOTS)
        for occupant in (occupants if isinstance(occupants, list) else [occupants])
    ]


def _exchanged(model: Any) -> list[str]:
    """Methods of the UNet that a node exchanged on the module itself, past the MODEL."""
    unet = model.model.diffusion_model
    own = [(name, vars(unet)[name]) for name in ("forward", "_forward") if name in vars(unet)]
    kind = [(name, vars(type(unet)).get(name)) for name in ("forward", "_forward")]
    strange = [(name, thing) for name, thing in kind if thing and thing.__module__ != type(unet).__module__]
    return [f"Another node exchanges diffusion_model.{name}: {_name(thing)}" for name, thing in own + strange]


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
        for patch in patches
    ]


def _foreign_slots(model: Any, model_options: Mapping[str, Any]) -> list[str]:
    options = model_options.get("transformer_options", {})
    lines = _slots(model_options)
    wrappers = {
        f"{kind} ({KEYS.get(key, key)})"
        for source in (options.get("wrappers", {}), model.wrappers)
        for kind, keyed in source.items()
        for key in keyed
        if key not in (KEY, GUARD)
    }
    lines += [f"Another node wraps {wrapper}" for wrapper in sorted(wrappers)]
    if "optimized_attention_override" in options:
        lines.append(f"Another node chooses the attention kernel: {_name(options['optimized_attention_override'])}")
    lines += [f"Another node exchanges {name}: {_name(thing)}" for name, thing in model.object_patches.items()]
    if model.patches:
        lines.append(f"{len(model.patches)} weights are changed (LoRA or merge)")
    return lines


def others_attend(options: Mapping[str, Any]) -> bool:
    """Whether another pack takes part in attentions: it may count the rows of a call."""
    slots = any(options.get(name) for name in ("patches", "patches_replace"))
    return "optimized_attention_override" in options or slots


def others_call(patcher: Any, options: Mapping[str, Any], unet: bool = False) -> bool:
    """Whether another pack's function stands between ours around a call and its attentions: it may count rows too.

    `patcher` is the MODEL that is called, None where it is not known; a UNet's call is ours one wrapper further in.
    """
    wrappers = options.get("wrappers", {})
    kinds = (WrappersMP.DIFFUSION_MODEL,) if unet else (WrappersMP.APPLY_MODEL, WrappersMP.DIFFUSION_MODEL)
    around = [wrapper for kind in kinds for wrapper in _within_ours(wrappers.get(kind, {}))]
    exchanged = (
        []
        if patcher is None
        else [thing for name, thing in patcher.object_patches.items() if name.startswith(INSIDE) and callable(thing)]
    )
    return not all(map(_of_the_host, (*around, *exchanged)))


def _within_ours(keyed: Mapping[Any, Sequence[Any]]) -> list[Any]:
    """The wrappers of one kind that run inside ours: those that come after; all of them where none is ours."""
    keys = list(keyed)
    first = keys.index(KEY) + 1 if KEY in keys else 0
    return [wrapper for key in keys[first:] for wrapper in keyed[key]]


def _of_the_host(thing: Any) -> bool:
    """Whether ComfyUI or PyTorch made a function or module, as Torch Compile does."""
    # ComfyUI names the modules of its own nodes by their paths.
    place = re.split(r"[./\\]", getattr(thing, "__module__", None) or "")
    return place[0] in ("comfy", "comfy_api", "torch") or place[-2:-1] == ["comfy_extras"]


def _name(thing: Any) -> str:
    kind = type(thing)
    named = thing if hasattr(thing, "__qualname__") else kind
    return f"{named.__module__}.{named.__qualname__}"
