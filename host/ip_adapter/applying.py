"""Encoded pictures on a MODEL: the patches that a weight type, a scaling and a window ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...attention.engine.call import AttentionSite
from ...attention.engine.scope import ImageMask, ScheduleWindow, Scope
from ...attention.families.weight_types import LayerWeights, WeightType, chosen_layers, layer_weights
from ...attention.functional.key_scaling import KeyScaling
from ...attention.functional.picture_sums import PictureSum, summed_pictures
from ...attention.methods.instantstyle import ImageTokens, InstantStyle
from ..binding.model import add_patch, map_unet
from ..instantstyle.adapter import LoadedAdapter
from .encoding import EncodedPictures
from .regions import Regions
from .sources import PictureReader, Source

NODE = "Apply IP-Adapter"
"""As its patches are called in messages."""


@dataclass(frozen=True)
class Listening:
    """How a model listens to pictures."""

    weights: tuple[float, ...] = (1.0,)
    """One for all, or with `per_image` one for each image of the batch, the last for all further ones."""
    kind: WeightType = "linear"
    how: PictureSum = "concat"
    scaling: KeyScaling = "V only"
    start: float = 0.0
    end: float = 1.0
    composition_weight: float = 1.0
    boost: float | None = None
    """The weight of the swapped blocks of a precise type; None for the pictures' own."""
    layers: str = ""
    """Weights of single layers, e.g. "3:2.5, 6:1", in place of the kind's."""
    per_image: bool = False
    """Whether each picture is for one image of the batch; `how` then has no say."""


def apply_source(
    model: Any,
    reader: PictureReader,
    image: Source | Regions,
    listening: Listening,
    negative: Source | None = None,
    mask: Tensor | None = None,
    composition: Tensor | None = None,
) -> Any:
    """A clone of MODEL that listens to pictures, to a reference, or to regions one after another.

    Regions have a weight, a type, a window and a mask of their own; all else is that of `listening`. Raises ValueError
    for what cannot be used together.
    """
    adapter = reader.adapter
    check_adapter(adapter, model)  # before the encoder takes its time
    if not isinstance(image, tuple):
        encoded = reader.both_sides(image, negative)
        composed = None if composition is None else reader.both_sides(composition, negative)
        return apply_pictures(model, adapter, encoded, listening, mask, composed)
    if mask is not None or composition is not None:
        raise ValueError(
            "Regions have masks of their own and no composition picture. Disconnect attn_mask and image_composition, "
            "or connect a picture to image."
        )
    for region in image:
        window = {"start": region.start, "end": region.end}
        settings = {"composition_weight": 1.0, "boost": None, "layers": ""}  # those of the node are not for regions
        own = replace(listening, weights=(region.weight,), kind=region.kind, **window, **settings)
        model = apply_pictures(model, adapter, reader.both_sides(region.images, negative), own, region.mask)
    return model


def check_adapter(adapter: LoadedAdapter, model: Any) -> None:
    """Raises ValueError unless an adapter fits a MODEL."""
    if adapter.layout.is_kolors:
        raise ValueError(
            f"The adapter '{adapter.name}' is for Kolors, which Semblance does not know. Choose an SD 1.5 or SDXL "
            "adapter and model."
        )
    adapter.numbers_for(map_unet(model))


def apply_pictures(
    model: Any,
    adapter: LoadedAdapter,
    encoded: EncodedPictures,
    listening: Listening,
    mask: Tensor | None = None,
    composition: EncodedPictures | None = None,
) -> Any:
    """A clone of MODEL that listens to pictures, in the area of `mask` (masks, height, width) if there is one.

    `composition` are further pictures, for the blocks that carry composition. Raises ValueError if adapter and model
    do not fit each other. Weights of 0, an empty mask and an empty window leave the model as it is.
    """
    model_map = map_unet(model)
    numbers = adapter.numbers_for(model_map)
    if mask is not None and not mask.any():
        return model
    area = None if mask is None else ImageMask(mask, straight=True, repeats=True)
    window = ScheduleWindow(listening.start, listening.end, may_be_empty=True)
    factors = _factors(listening, model_map.family.blocks)
    if composition is not None and not factors.by_composition:
        raise ValueError(
            f"A composition picture acts only with the weight type 'style and composition', and this is "
            f"'{listening.kind}'{' with layers' if listening.layers.strip() else ''}. Choose that one, or disconnect "
            "image_composition."
        )
    tokens = _tokens(adapter, encoded, listening)
    composed = tokens if composition is None else _tokens(adapter, composition, listening)
    boosts = listening.weights if listening.boost is None else (listening.boost,)

    def patched(
        model: Any, what: str, tokens: ImageTokens, blocks: Mapping[str, float], weights: Sequence[float]
    ) -> Any:
        if not any(blocks.values()) or not any(weights):
            return model
        scope = Scope(blocks, window, area)
        return add_patch(model, _patch(adapter, numbers, tokens, scope, weights, listening.scaling, f"{NODE}{what}"))

    model = patched(model, "", tokens, factors.by_weight, listening.weights)
    model = patched(model, ", composition", composed, factors.by_composition, (listening.composition_weight,))
    return patched(model, ", pushing away", _swapped(tokens), factors.swapped, boosts)


def _factors(listening: Listening, blocks: Sequence[str]) -> LayerWeights:
    if listening.layers.strip():
        return chosen_layers(listening.layers, listening.kind, blocks)
    return layer_weights(listening.kind, blocks)


def _tokens(adapter: LoadedAdapter, encoded: EncodedPictures, listening: Listening) -> ImageTokens:
    keeps_apart = listening.how == "concat" and not listening.per_image
    if not keeps_apart and len({picture.shape for picture in encoded.pictures}) > 1:
        raise ValueError(
            "The reference's pictures are cut into different numbers of tiles, so only 'concat' takes them, and not "
            "per_image. Encode them with the fit 'crop' or 'pad'."
        )
    if listening.per_image:
        count = max(len(encoded.pictures), len(encoded.negatives))
        pictures = tuple(encoded.pictures[min(row, len(encoded.pictures) - 1)] for row in range(count))
    else:
        pictures = summed_pictures(encoded.pictures, listening.how)
    sides = pictures, encoded.negatives_for(len(pictures))
    contents = {_content(picture): picture for side in sides for picture in side}
    made = {content: adapter.tokens_of(picture) for content, picture in contents.items()}
    conditional, negatives = (tuple(made[_content(picture)] for picture in side) for side in sides)
    return ImageTokens(conditional, negatives, _counts(encoded, len(pictures)), listening.per_image)


def _content(picture: Tensor) -> bytes:
    """By which encoded pictures are one: frames of an animation often share theirs."""
    return picture.detach().cpu().contiguous().numpy().tobytes()


def _counts(encoded: EncodedPictures, pictures: int) -> tuple[float, ...]:
    """How much each of so many pictures counts, the last one for all that repeat it."""
    counts = encoded.weights or (1.0,)
    if pictures < len(counts) and len(set(counts)) > 1:
        raise ValueError(
            "The reference weighs its pictures, which only 'concat' keeps apart. Set combine_embeds to concat, or "
            "combine them in Encode Style Reference."
        )
    return tuple(counts[min(number, len(counts) - 1)] for number in range(pictures))


def _swapped(tokens: ImageTokens) -> ImageTokens:
    """The pictures on the unconditional side, and nothing on the conditional: keys and values have no bias."""
    nothing = {picture.shape: torch.zeros_like(picture) for picture in tokens.conditional}
    conditional = tuple(nothing[picture.shape] for picture in tokens.conditional)
    return ImageTokens(conditional, tokens.conditional, tokens.weights, tokens.by_image)


def _patch(
    adapter: LoadedAdapter,
    numbers: Mapping[AttentionSite, int],
    tokens: ImageTokens,
    scope: Scope,
    weights: Sequence[float],
    scaling: KeyScaling,
    method: str,
) -> InstantStyle:
    strength = weights[0]
    if tokens.by_image:
        tokens, strength = replace(tokens, weights=_strengths(tokens, weights)), 1.0
    return InstantStyle(tokens, adapter, numbers, scope, strength, adapter.name, "per image", scaling, method)


def _strengths(tokens: ImageTokens, weights: Sequence[float]) -> tuple[float, ...]:
    """By image, as far as either goes: its weight times what its picture counts."""
    counts = tokens.weights
    images = range(max(len(weights), len(counts)))
    return tuple(weights[min(i, len(weights) - 1)] * counts[min(i, len(counts) - 1)] for i in images)
