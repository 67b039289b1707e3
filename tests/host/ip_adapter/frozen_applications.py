"""The frozen cases of ComfyUI_IPAdapter_plus, put on the reference UNets by the host storey."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from semblance.attention.adapters.checkpoint import flatten
from semblance.attention.functional.picture_sums import summed_pictures
from semblance.host.instantstyle.adapter import LoadedAdapter, manage_adapter
from semblance.host.ip_adapter.applying import Listening, apply_pictures
from semblance.host.ip_adapter.encoding import (
    EncodedPictures,
    encode_both_sides,
    encode_in_tiles,
    encode_nothing,
    encode_pictures,
    weighted,
)
from semblance.host.ip_adapter.sources import PictureReader
from semblance.host.ip_adapter.tiles import apply_tiles, cut_into_tiles
from semblance.tests.support.frozen_cases import load_reference
from semblance.tests.support.oracles import oracle_clip_vision

TENSORS, FACTS = load_reference("ipadapter_plus")
BOOSTS = {"style_boost", "composition_boost"}


def adapter_of(kind: str, variant: str) -> LoadedAdapter:
    return manage_adapter(variant, flatten(load_reference(f"ip_adapter_{kind}.adapter_{variant}")[0]))


def images(numbers: Any) -> Tensor:
    """Pictures by number, or one by name, as an IMAGE."""
    stored = TENSORS[f"in.{numbers}_u8"] if isinstance(numbers, str) else TENSORS["in.images_u8"][numbers]
    return stored.float() / 255


def masks(numbers: list[int] | None) -> Tensor | None:
    return None if numbers is None else TENSORS["in.masks_u8"][numbers].float() / 255


def apply(model: Any, kind: str, settings: Mapping[str, Any]) -> Any:
    """One node of a frozen case on a MODEL."""
    adapter, encoder = adapter_of(kind, settings["adapter"]), oracle_clip_vision()
    if "params" in settings:
        for region in settings["params"]:
            own = {**settings, **region, "weight": region["image_weight"], "attn_mask": region["mask"]}
            del own["params"]
            model = apply(model, kind, own)
        return model
    if settings["node"] == "IPAdapterTiled":
        tiles = cut_into_tiles(images(settings["image"]), settings["sharpening"], masks(settings.get("attn_mask")))
        return apply_tiles(model, PictureReader(adapter, encoder), tiles, listening(settings))
    encoded = encode(adapter, encoder, settings, "image")
    composition = encode(adapter, encoder, settings, "image_composition") if "image_composition" in settings else None
    return apply_pictures(model, adapter, encoded, listening(settings), masks(settings.get("attn_mask")), composition)


def listening(settings: Mapping[str, Any]) -> Listening:
    weight = settings.get("weight", settings.get("weight_style"))
    batch = settings["node"].endswith("Batch")
    kind = settings.get("weight_type", "linear")
    if settings["node"] == "IPAdapterStyleComposition":
        kind = "strong style and composition" if settings["expand_style"] else "style and composition"
    if settings["node"] == "IPAdapterPreciseStyleTransfer":
        kind = "style transfer precise"
    if settings["node"] == "IPAdapterPreciseComposition":
        kind = "composition precise"
    boost = next((settings[name] for name in BOOSTS if name in settings), None)
    return Listening(
        weights=tuple(weight) if isinstance(weight, list) else (weight,),
        kind=kind,
        how=settings.get("combine_embeds", "concat"),
        scaling=settings.get("embeds_scaling", "V only"),
        start=settings.get("start_at", 0.0),
        end=settings.get("end_at", 1.0),
        composition_weight=settings.get("weight_composition", 1.0),
        boost=boost,
        layers=settings.get("layer_weights", ""),
        per_image=batch,
    )


def encode(adapter: LoadedAdapter, encoder: Any, settings: Mapping[str, Any], name: str) -> EncodedPictures:
    is_global = adapter.layout.is_global
    if "pos_embed" in settings:
        return EncodedPictures(
            embeds(encoder, settings["pos_embed"], is_global), embeds(encoder, settings.get("neg_embed"), is_global)
        )
    shown = images(settings.get(name) if name in settings else settings["image_style"])
    negative = images(settings["image_negative"]) if "image_negative" in settings else None
    whole = encode_both_sides(encoder, shown, is_global, negative)
    if "enhance_tiles" in settings:
        tiled = encode_in_tiles(encoder, shown, is_global, settings["enhance_tiles"], settings["enhance_ratio"])
        return EncodedPictures(tiled, whole.negatives)
    return whole


def embeds(encoder: Any, settings: Mapping[str, Any] | None, is_global: bool) -> tuple[Tensor, ...]:
    """What IPAdapterEncoder and IPAdapterCombineEmbeds gave."""
    if settings is None or settings.get("side") == "neg":
        return encode_nothing(encoder, is_global)
    encoded: list[Tensor] = []
    for one in settings["encode"]:
        pictures = encode_pictures(encoder, images(one["image"]), is_global, masks(one.get("mask")))
        encoded += weighted(pictures, one["weight"])
    return summed_pictures(encoded, settings.get("combine", "concat"))


def predicted_noise(model: Any, kind: str) -> Tensor:
    """The network's output for both sides of the case's latents, unconditional rows first."""
    facts, case = FACTS["kinds"][kind], f"in.{kind}"
    sigma = model.model.model_sampling.sigmas[facts["timestep"]]
    latent = TENSORS[f"{case}.latent_vp"].repeat(2, 1, 1, 1)
    x = latent * (1 + sigma**2).sqrt()
    context = torch.cat([TENSORS[f"{case}.negative"], TENSORS[f"{case}.positive"]])
    extra: dict[str, Any] = {}
    if kind == "sdxl":
        pooled = torch.cat([TENSORS[f"{case}.negative_pooled"], TENSORS[f"{case}.positive_pooled"]])
        extra["y"] = model.model.encode_adm(pooled_output=pooled, **facts["size_conditioning"])
    options = {**model.model_options["transformer_options"], "cond_or_uncond": [1, 0]}
    with torch.no_grad():
        clean = model.model.apply_model(
            x, sigma.expand(len(x)), c_crossattn=context, transformer_options=options, **extra
        )
    return (x - clean) / sigma
