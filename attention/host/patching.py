"""Patches on a MODEL: put there, read back, and described. The given MODEL is never changed; a clone carries them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.patcher_extension
from comfy.patcher_extension import WrappersMP

from ..adapters.checkpoint import FAMILY_OF_TEXT_WIDTH
from ..call import AttentionSite
from ..families import FAMILIES, ModelFamily, family_of
from ..patch import AttentionPatch
from .carried import KEY, CarriedPatch, carried_patches
from .sampling import apply_model, calc_cond_batch, outer_sample
from .unet import attention_layer, attention_sites, diffusion_model

WRAPPERS = {
    WrappersMP.OUTER_SAMPLE: outer_sample,
    WrappersMP.CALC_COND_BATCH: calc_cond_batch,
    WrappersMP.APPLY_MODEL: apply_model,
    WrappersMP.DIFFUSION_MODEL: diffusion_model,
}

GUIDER_SLOTS = ("model_function_wrapper", "sampler_", "denoise_mask_function")
"""How the entries of a MODEL's options begin that hold another node's function around a step."""


@dataclass(frozen=True)
class ModelMap:
    """What a method needs to know of a MODEL before it runs."""

    family: ModelFamily
    text_width: int
    widths: Mapping[AttentionSite, int]
    """Channels of every attention layer, in the order the model runs them."""

    @property
    def sites(self) -> tuple[AttentionSite, ...]:
        return tuple(self.widths)

    @property
    def name(self) -> str:
        """The family as people know it; SD 2.x has SD 1.5's blocks and another text encoder."""
        return FAMILY_OF_TEXT_WIDTH.get(self.text_width, self.family.name)


def map_model(model: Any) -> ModelMap:
    """Reads the map off the MODEL itself. Raises ValueError for a model of another family."""
    unet = model.model.diffusion_model
    sites = attention_sites(unet) if hasattr(unet, "output_blocks") else ()
    layers = {site: attention_layer(unet, site) for site in sites}
    text_width = next((layer.to_k.in_features for site, layer in layers.items() if site.kind == "cross"), None)
    family = family_of(sites, FAMILIES, text_width)
    if family is None or text_width is None:
        known = " or ".join(family.name for family in FAMILIES if family.text_width is None)
        raise ValueError(
            f"This model ({type(model.model).__name__}) does not have the attention blocks of {known}: it is of "
            f"another family, or a thinned copy such as SSD-1B. Load an {known} checkpoint."
        )
    return ModelMap(family, text_width, {site: layer.to_q.out_features for site, layer in layers.items()})


def add_patch(model: Any, patch: AttentionPatch, weights: Sequence[Any] = ()) -> Any:
    """A clone of MODEL that also carries `patch`, after those it already carries.

    `weights` are the model patchers of the patch's own weights; ComfyUI loads and frees them with the MODEL.
    """
    patched = model.clone()
    patched.set_model_patch(CarriedPatch(patch, weights), KEY)
    for kind, wrapper in WRAPPERS.items():
        if not comfy.patcher_extension.get_wrappers_with_key(kind, KEY, patched.model_options, is_model_options=True):
            comfy.patcher_extension.add_wrapper_with_key(kind, KEY, wrapper, patched.model_options, True)
    return patched


def exchange_patch(model: Any, old: AttentionPatch, new: AttentionPatch) -> Any:
    """A clone of MODEL that carries `new` in the place of `old`."""
    patched = model.clone()
    patches = patched.model_options["transformer_options"]["patches"]
    patches[KEY] = [CarriedPatch(new, carrier.weights) if carrier.patch is old else carrier for carrier in patches[KEY]]
    return patched


def patches_on(model: Any) -> tuple[AttentionPatch, ...]:
    """The patches a MODEL carries, in the order their nodes were applied."""
    return carried_patches(model.model_options["transformer_options"])


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
