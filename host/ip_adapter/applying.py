"""Encoded pictures on a MODEL: the patches that a weight type, a scaling and a window ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...attention.engine.call import AttentionSite
from ...attention.engine.scope import ImageMask, ScheduleWindow, Scope
from ...attention.families.weight_types import LayerWeights, WeightType, chosen_layers, layer_weights
from ...attention.functional.key_scaling import KeyScaling
from ...attention.functional.picture_sums import PictureSum, summed_pictures
from ...attention.methods.instantstyle import ImageTokens, InstantStyle
from ..binding.model import add_patch, map_model
from ..instantstyle.adapter import LoadedAdapter
from .encoding import EncodedPictures


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
    model_map = map_model(model)
    numbers = adapter.numbers_for(model_map)
    if mask is not None and not mask.any():
        return model
    area = None if mask is None else ImageMask(mask, straight=True, repeats=True)
    window = ScheduleWindow(listening.start, listening.end, may_be_empty=True)
    factors = _factors(listening, model_map.family.blocks)
    tokens = _tokens(adapter, encoded, listening)
    composed = tokens if composition is None else _tokens(adapter, composition, listening)
    boosts = listening.weights if listening.boost is None else (listening.boost,)

    def patched(model: Any, tokens: ImageTokens, blocks: Mapping[str, float], weights: Sequence[float]) -> Any:
        if not any(blocks.values()) or not any(weights):
            return model
        scope = Scope(blocks, window, area)
        return add_patch(model, _patch(adapter, numbers, tokens, scope, weights, listening.scaling))

    model = patched(model, tokens, factors.by_weight, listening.weights)
    model = patched(model, composed, factors.by_composition, (listening.composition_weight,))
    return patched(model, _swapped(tokens), factors.swapped, boosts)


def _factors(listening: Listening, blocks: Sequence[str]) -> LayerWeights:
    if listening.layers.strip():
        return chosen_layers(listening.layers, listening.kind, blocks)
    return layer_weights(listening.kind, blocks)


def _tokens(adapter: LoadedAdapter, encoded: EncodedPictures, listening: Listening) -> ImageTokens:
    if listening.per_image:
        count = max(len(encoded.pictures), len(encoded.negatives))
        pictures = tuple(encoded.pictures[min(row, len(encoded.pictures) - 1)] for row in range(count))
    else:
        pictures = summed_pictures(encoded.pictures, listening.how)
    negatives = encoded.negatives_for(len(pictures))
    sides = (tuple(adapter.tokens_of(embedding) for embedding in side) for side in (pictures, negatives))
    return ImageTokens(*sides, _counts(encoded, len(pictures)), listening.per_image)


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
    nothing = tuple(torch.zeros_like(picture) for picture in tokens.conditional)
    return ImageTokens(nothing, tokens.conditional, tokens.weights, tokens.by_image)


def _patch(
    adapter: LoadedAdapter,
    numbers: Mapping[AttentionSite, int],
    tokens: ImageTokens,
    scope: Scope,
    weights: Sequence[float],
    scaling: KeyScaling,
) -> InstantStyle:
    strength = weights[0]
    if tokens.by_image:
        tokens, strength = ImageTokens(tokens.conditional, tokens.unconditional, tuple(weights), True), 1.0
    return InstantStyle(
        tokens, adapter, numbers, scope, strength, adapter.name, "per image", scaling, "Apply IP-Adapter"
    )
