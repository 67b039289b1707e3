"""The frozen cases of ComfyUI_IPAdapter_plus on our nodes, by the table that replaces its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from semblance.attention.adapters.checkpoint import flatten
from semblance.host.instantstyle.adapter import LoadedAdapter, manage_adapter
from semblance.host.instantstyle.encoding import EncodedStyle
from semblance.host.ip_adapter.regions import Regions
from semblance.host.replacement.table import REPLACEMENTS
from semblance.nodes.apply_adapter import ApplyAdapter
from semblance.nodes.picture_parts import CombineReferences, EncodePicture
from semblance.nodes.picture_regions import CombineRegions
from semblance.nodes.picture_regions import Region as RegionNode
from semblance.nodes.picture_tiles import ApplyAdapterTiles
from semblance.tests.support.frozen_cases import load_reference
from semblance.tests.support.graphs import run
from semblance.tests.support.oracles import oracle_clip_vision
from semblance.tests.tiny_models.sampling import sampler_custom

TENSORS, FACTS = load_reference("ipadapter_plus")
PICTURES = ("image", "image_negative", "image_style", "image_composition")
THEIRS = {"params": "ipadapter_params"}
"""Inputs that the frozen cases call by a name of their own."""
DEFAULTS = {
    "weight": 1.0,
    "weight_type": "linear",
    "combine_embeds": "concat",
    "start_at": 0.0,
    "end_at": 1.0,
    "embeds_scaling": "V only",
}


def applied(model: Any, kind: str, node: Mapping[str, Any]) -> Any:
    """MODEL with one old node of a frozen case on it, as the node in its place puts it there."""
    adapter = replace(frozen_adapter(kind, node["adapter"]), encoder=oracle_clip_vision())
    entry = REPLACEMENTS[node["node"]]
    given = {THEIRS.get(name, name): value_of(adapter, name, value) for name, value in node.items()}
    named = {ours: given[theirs] for ours, theirs in entry.inputs.items() if theirs in given}
    node_class = {"SemblanceApplyAdapter": ApplyAdapter, "SemblanceApplyAdapterTiles": ApplyAdapterTiles}[entry.node]
    return run(node_class, model=model, ipadapter=adapter, **{**DEFAULTS, **named, **entry.values})[0]


def frozen_adapter(kind: str, variant: str) -> LoadedAdapter:
    return manage_adapter(variant, flatten(load_reference(f"ip_adapter_{kind}.adapter_{variant}")[0]))


def value_of(adapter: LoadedAdapter, name: str, value: Any) -> Any:
    """An input's value: pictures and masks for their numbers, a reference for encodings, regions for their settings."""
    if name in PICTURES:
        return pictures_of(value)
    if name == "attn_mask":
        return masks_of(value)
    if name in ("pos_embed", "neg_embed"):
        return reference_of(adapter, value)
    return regions_of(value) if name == "params" else value


def regions_of(settings: Sequence[Mapping[str, Any]]) -> Regions:
    """What the old nodes that make the settings of regions and join them give."""
    regions: list[Regions] = []
    for one in settings:
        inputs = {**one, "image": pictures_of(one["image"]), "mask": masks_of(one["mask"])}
        regions.append(run(RegionNode, **inputs)[0])
    return run(CombineRegions, *regions)[0]


def reference_of(adapter: LoadedAdapter, settings: Mapping[str, Any]) -> EncodedStyle:
    """What the old encoder of pictures and the old node that combines its outputs give."""
    side = ("pos", "neg").index(settings.get("side", "pos"))
    references = [
        run(
            EncodePicture,
            adapter,
            pictures_of(one["image"]),
            one["weight"],
            masks_of(one["mask"]) if "mask" in one else None,
        )[side]
        for one in settings["encode"]
    ]
    return run(CombineReferences, references[0], settings.get("combine", "concat"), *references[1:])[0]


def pictures_of(numbers: Any) -> Tensor:
    """Pictures by number, or one by name, as an IMAGE."""
    stored = TENSORS[f"in.{numbers}_u8"] if isinstance(numbers, str) else TENSORS["in.images_u8"][numbers]
    return stored.float() / 255


def masks_of(numbers: list[int]) -> Tensor:
    """Masks by number, as a MASK."""
    return TENSORS["in.masks_u8"][numbers].float() / 255


def frozen_sample(model: Any, kind: str) -> Tensor:
    """The LATENT that the frozen cases' sampler gives."""
    case, facts = f"in.{kind}", FACTS["kinds"][kind]
    sizes = facts["size_conditioning"]
    sigmas = TENSORS[f"{case}.sigmas"]
    sides: dict[str, Any] = {}
    for side in ("positive", "negative"):
        pooled = {"pooled_output": TENSORS[f"{case}.{side}_pooled"]} if kind == "sdxl" else {}
        sides[side] = [[TENSORS[f"{case}.{side}"], {**pooled, **sizes}]]
    # The samplers scale a latent on their way in and out.
    latent = TENSORS[f"{case}.latent_vp"] * (1 + sigmas[0] ** 2).sqrt()
    start = {"samples": model.get_model_object("latent_format").process_out(latent)}
    with torch.no_grad():
        return sampler_custom(model, **sides, latent=start, sigmas=sigmas, cfg=FACTS["cfg"])
