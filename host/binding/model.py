"""Patches on a MODEL: put there and read back. The given MODEL is never changed; a clone carries them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import comfy.patcher_extension
from comfy.patcher_extension import WrappersMP

from ...attention.engine.call import AttentionSite
from ...attention.engine.patch import AttentionPatch
from ...attention.families import AMUSED, FAMILIES, ModelFamily, amused_of, family_of
from ...attention.families.names import FAMILY_OF_TEXT_WIDTH
from ...attention.families.transformers import FLUX_BLOCKS, KINDS, transformer_family
from ..masked.transformer import MaskedTransformer
from .carried import KEY, carried_patches, carry
from .noise_schedule import is_flow
from .step import diffusion_model
from .transformer import transformer_of, unreached
from .unet_sites import attention_layer, attention_sites
from .wrappers import apply_model, calc_cond_batch, outer_sample, predict_noise, prepare_sampling

WRAPPERS = {
    WrappersMP.OUTER_SAMPLE: outer_sample,
    WrappersMP.PREPARE_SAMPLING: prepare_sampling,
    WrappersMP.PREDICT_NOISE: predict_noise,
    WrappersMP.CALC_COND_BATCH: calc_cond_batch,
    WrappersMP.APPLY_MODEL: apply_model,
    WrappersMP.DIFFUSION_MODEL: diffusion_model,
}


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
        if self.family not in FAMILIES:  # transformers, whose text may be as wide as a UNet's
            return self.family.name
        return FAMILY_OF_TEXT_WIDTH.get(self.text_width, self.family.name)


def map_transformer(model: Any) -> ModelFamily:
    """The family of a MODEL that is a diffusion transformer. Raises ValueError for any other."""
    transformer = transformer_of(model.model)
    if transformer is not None:
        return transformer_family(transformer.name, transformer.sites)
    check_reached(model)
    known = ", ".join(kind.name for kind in KINDS.values())
    raise ValueError(
        f"This model ({type(model.model).__name__}) is of a family that Semblance does not know. Load a UNet (SD 1.5, "
        f"SDXL), or one of {known}."
    )


def check_reached(model: Any) -> None:
    """Raises ValueError for a transformer whose attention no patch can reach."""
    if name := unreached(model.model):
        raise ValueError(
            f"This model is a {name}, whose attention ComfyUI lets no node reach. Load a model of another family."
        )


def map_model(model: Any) -> ModelMap:
    """Reads the map off the MODEL itself. Raises ValueError for a model of another family."""
    if (transformer := transformer_of(model.model)) is not None:
        others = ["StyleID"] if is_flow(model) else []
        others += ["InstantStyle"] if transformer.kind.blocks == FLUX_BLOCKS else []
        raise ValueError(
            f"This model is a {transformer.name} transformer, and this method acts on the UNet of SD 1.5 or SDXL. Load "
            f"an SD 1.5 or SDXL checkpoint; on this model Semblance has {' and '.join(['Reference Style', *others])}."
        )
    check_reached(model)
    unet = model.model.diffusion_model
    if isinstance(unet, MaskedTransformer):
        widths = {site: attention_layer(unet, site).to_q.out_features for site in attention_sites(unet)}
        return ModelMap(amused_of(unet.settings.layers), unet.settings.text, widths)
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


def blocks_of(model: Any) -> tuple[str, ...]:
    """The blocks with attention of any MODEL that Semblance knows, in the order the model runs them."""
    family = map_model(model).family if transformer_of(model.model) is None else map_transformer(model)
    return family.blocks


def map_unet(model: Any) -> ModelMap:
    """Like `map_model`, for methods that act on a UNet alone: raises ValueError for a masked transformer too."""
    known = map_model(model)
    if known.family.name == AMUSED:
        raise ValueError(
            f"This model is a masked transformer ({AMUSED}), and this method acts on the UNet of SD 1.5 or SDXL. Load "
            "an SD 1.5 or SDXL checkpoint; on this model Semblance has StyleDrop: Tune Style and Apply Style Adapter."
        )
    return known


def add_patch(model: Any, patch: AttentionPatch) -> Any:
    """A clone of MODEL that also carries `patch`, after those it already carries."""
    patched = model.clone()
    options = patched.model_options["transformer_options"]
    carry(options, (*carried_patches(options), patch))
    for kind, wrapper in _wrappers_for(model).items():
        if not comfy.patcher_extension.get_wrappers_with_key(kind, KEY, patched.model_options, is_model_options=True):
            comfy.patcher_extension.add_wrapper_with_key(kind, KEY, wrapper, patched.model_options, True)
    return patched


def _wrappers_for(model: Any) -> Mapping[str, Any]:
    """A transformer is bound where its model is applied: each family's own module is called in a way of its own."""
    if transformer_of(model.model) is None:
        return WRAPPERS
    return {kind: wrapper for kind, wrapper in WRAPPERS.items() if kind != WrappersMP.DIFFUSION_MODEL}


def exchange_patch(model: Any, old: AttentionPatch, new: AttentionPatch) -> Any:
    """A clone of MODEL that carries `new` in the place of `old`."""
    patched = model.clone()
    options = patched.model_options["transformer_options"]
    carry(options, tuple(new if patch is old else patch for patch in carried_patches(options)))
    return patched


def patches_on(model: Any) -> tuple[AttentionPatch, ...]:
    """The patches a MODEL carries, in the order their nodes were applied."""
    return carried_patches(model.model_options["transformer_options"])
