"""The frozen cases of ComfyUI_IPAdapter_plus on the nodes that take the place of its own, input by input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from semblance.attention.adapters.checkpoint import flatten
from semblance.attention.functional.picture_sums import summed_pictures
from semblance.attention.references.style import StyleReference
from semblance.host.instantstyle.adapter import LoadedAdapter, manage_adapter
from semblance.host.instantstyle.encoding import EncodedStyle
from semblance.host.ip_adapter.encoding import encode_nothing, encode_pictures, weighted
from semblance.host.ip_adapter.regions import Region
from semblance.nodes.apply_adapter import ApplyAdapter
from semblance.tests.support.frozen_cases import load_reference
from semblance.tests.support.graphs import run
from semblance.tests.support.oracles import oracle_clip_vision
from semblance.tests.tiny_models.sampling import sampler_custom

TENSORS, FACTS = load_reference("ipadapter_plus")
PICTURES = ("image", "image_negative", "image_style", "image_composition")
RENAMED = {
    "image_style": "image",
    "weight_style": "weight",
    "style_boost": "boost",
    "composition_boost": "boost",
    "layer_weights": "layers",
    "pos_embed": "image",
    "neg_embed": "image_negative",
    "params": "image",
}
SET = {
    "IPAdapter": {"combine_embeds": "concat", "embeds_scaling": "V only"},
    "IPAdapterBatch": {"per_image": True, "combine_embeds": "concat"},
    "IPAdapterStyleComposition": {"weight_type": "style and composition"},
    "IPAdapterPreciseStyleTransfer": {"weight_type": "style transfer precise, boosted"},
    "IPAdapterPreciseComposition": {"weight_type": "composition precise, boosted"},
    "IPAdapterEmbeds": {"combine_embeds": "concat"},
    "IPAdapterFromParams": {"weight": 1.0, "weight_type": "linear", "start_at": 0.0, "end_at": 1.0},
}
"""What an old node means without saying it."""
DEFAULTS = {
    "weight": 1.0,
    "weight_type": "linear",
    "combine_embeds": "concat",
    "start_at": 0.0,
    "end_at": 1.0,
    "embeds_scaling": "V only",
}
WITHOUT_A_USE = ("node", "adapter", "encode_batch_size", "weight_faceidv2")


def applied(model: Any, kind: str, node: Mapping[str, Any]) -> Any:
    """MODEL with one old node of a frozen case on it, as Apply IP-Adapter puts it there."""
    adapter = replace(frozen_adapter(kind, node["adapter"]), encoder=oracle_clip_vision())
    named = {RENAMED.get(name, name): value_of(adapter, name, value) for name, value in node.items()}
    inputs = {**DEFAULTS, **named, **SET.get(node["node"], {})}
    for name in WITHOUT_A_USE:
        inputs.pop(name, None)
    return run(ApplyAdapter, model=model, ipadapter=adapter, **inputs)[0]


def frozen_adapter(kind: str, variant: str) -> LoadedAdapter:
    return manage_adapter(variant, flatten(load_reference(f"ip_adapter_{kind}.adapter_{variant}")[0]))


def value_of(adapter: LoadedAdapter, name: str, value: Any) -> Any:
    """An input's value: pictures and masks for their numbers, a reference for encodings, regions for their settings."""
    if name in PICTURES:
        return TENSORS["in.images_u8"][value].float() / 255
    if name == "attn_mask":
        return TENSORS["in.masks_u8"][value].float() / 255
    if name in ("pos_embed", "neg_embed"):
        return reference_of(adapter, value)
    return tuple(map(region_of, value)) if name == "params" else value


def region_of(settings: Mapping[str, Any]) -> Region:
    images, mask = (
        TENSORS[f"in.{what}_u8"][settings[one]].float() / 255 for what, one in (("images", "image"), ("masks", "mask"))
    )
    weight, kind = settings["image_weight"], settings["weight_type"]
    return Region(images, weight, kind, settings["start_at"], settings["end_at"], mask)


def reference_of(adapter: LoadedAdapter, settings: Mapping[str, Any]) -> EncodedStyle:
    """What the old encoder of pictures and the old node that combines its outputs give."""
    encoder, is_global = adapter.encoder, adapter.layout.is_global
    nothing = encode_nothing(encoder, is_global)
    pictures: list[Tensor] = []
    for one in settings["encode"]:
        mask = TENSORS["in.masks_u8"][one["mask"]].float() / 255 if "mask" in one else None
        images = TENSORS["in.images_u8"][one["image"]].float() / 255
        pictures += weighted(encode_pictures(encoder, images, is_global, mask), one["weight"])
    if settings.get("side") == "neg":
        pictures = list(nothing)
    combined = summed_pictures(pictures, settings.get("combine", "concat"))
    return EncodedStyle(StyleReference(combined, nothing[0], (1.0,) * len(combined)), adapter, "")


def frozen_sample(model: Any, kind: str) -> Tensor:
    """The LATENT that the frozen cases' sampler gives."""
    case, facts = f"in.{kind}", FACTS["kinds"][kind]
    sizes = facts["size_conditioning"]
    sigmas = TENSORS[f"{case}.sigmas"]
    sides: list[list[list[Any]]] = []
    for side in ("positive", "negative"):
        pooled = {"pooled_output": TENSORS[f"{case}.{side}_pooled"]} if kind == "sdxl" else {}
        sides.append([[TENSORS[f"{case}.{side}"], {**pooled, **sizes}]])
    # The samplers scale a latent on their way in and out.
    latent = TENSORS[f"{case}.latent_vp"] * (1 + sigmas[0] ** 2).sqrt()
    start = {"samples": model.get_model_object("latent_format").process_out(latent)}
    with torch.no_grad():
        return sampler_custom(model, *sides, start, sigmas, cfg=FACTS["cfg"])
