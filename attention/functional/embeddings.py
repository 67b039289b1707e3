"""Arithmetic on the embeddings of CLIP's image and text towers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

Combination = Literal["concatenate", "average", "norm average", "add", "subtract"]
COMBINATIONS: tuple[Combination, ...] = get_args(Combination)


def combine_pictures(
    pictures: Sequence[Tensor], weights: Sequence[float], combination: Combination
) -> tuple[tuple[Tensor, ...], tuple[float, ...]]:
    """The pictures and weights of one reference made of several encoded pictures.

    A picture is (crops, channels) or (crops, patches, channels). All but `concatenate` return one picture with one crop
    and weight 1; crops are averaged.

    - concatenate: each picture keeps its own tokens; a weight is the number of copies that attention counts.
    - average: the weighted mean.
    - norm average: the weighted mean of directions with the weighted mean length; lengths do not weigh.
    - add: the weighted sum.
    - subtract: the first picture minus the weighted mean of the others.
    """
    if combination == "concatenate":
        return tuple(pictures), tuple(weights)
    embeddings = torch.stack([picture.mean(dim=0) for picture in pictures])  # (pictures, ..., channels)
    weight = torch.tensor(weights, dtype=embeddings.dtype).reshape(-1, *[1] * (embeddings.ndim - 1))
    joined = _join(embeddings, weight, combination)
    return (joined.unsqueeze(0),), (1.0,)


def _join(embeddings: Tensor, weight: Tensor, combination: Combination) -> Tensor:
    if combination == "add":
        return (weight * embeddings).sum(dim=0)
    if combination == "subtract":
        weighted = weight * embeddings
        return weighted[0] - weighted[1:].mean(dim=0) if len(weighted) > 1 else weighted[0]
    if combination == "norm average":
        length = _length(embeddings)
        mean_length = (weight * length).sum(dim=0) / weight.sum()
        direction = (weight * embeddings / length).sum(dim=0)
        return direction / _length(direction) * mean_length
    return (weight * embeddings).sum(dim=0) / weight.sum()


def _length(embeddings: Tensor) -> Tensor:
    return embeddings.square().sum(dim=-1, keepdim=True).sqrt()


def subtract_text(embedding: Tensor, text: Tensor, strength: float) -> Tensor:
    """`embedding - strength * text`, (..., channels) each (InstantStyle, arXiv:2404.02733).

    Both are projected and not normalised, as in the authors' code.
    """
    return embedding - strength * text


def mean_phrase(phrases: Tensor, weights: Sequence[float]) -> Tensor:
    """One text embedding for several weighted phrases, (phrases, channels) -> (channels,).

    The weighted sum is divided by the number of phrases, not by the sum of weights. So the strength of the subtraction
    keeps the authors' scale for any number of phrases.
    """
    weight = torch.tensor(weights, dtype=phrases.dtype, device=phrases.device)
    return (weight[:, None] * phrases).mean(dim=0)
