"""Pictures encoded as a style: checked, fitted, encoded, combined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...attention.adapters.flux_checkpoint import Layout
from ...attention.functional.embeddings import Combination, combine_pictures
from ...attention.references.style import StyleReference
from ..pictures import Fit, check_picture, fit_picture
from ..thumbnails import thumbnail_of
from .adapter import LoadedAdapter
from .vision import check_encoder, encode_crops, encode_nothing


@dataclass(frozen=True, eq=False)
class EncodedStyle:
    """The value of a REFERENCE socket: a style reference and the adapter it was encoded for."""

    reference: StyleReference
    adapter: LoadedAdapter
    thumbnail: str
    """A JPEG data URL, or an empty string."""

    def __repr__(self) -> str:
        return f"{self.reference} for {self.adapter}"


def encode_style(
    adapter: LoadedAdapter,
    encoder: Any,
    images: Mapping[str, Tensor],
    combination: Combination,
    fit: Fit,
    weights: Sequence[float],
    negative: Tensor | None = None,
) -> tuple[EncodedStyle, Tensor]:
    """Encodes pictures for `adapter`. Also returns them as fitted for the encoder, (crops, size, size, 3) in [0, 1].

    `images` are batches (images, height, width, 3) by the name of their input. `weights` has one entry for each
    picture, in order, or is empty. `negative` (images, height, width, 3) replaces the empty unconditional side. Raises
    ValueError for the wrong encoder, unusable pictures and unusable weights.
    """
    check_encoder(encoder, adapter.layout)
    if not images:
        raise ValueError("There is no style picture. Connect one to 'picture0', e.g. from Load Image.")
    for name, batch in images.items():
        check_picture(batch, f"The image at '{name}'")
    fitted = [_fit(encoder, picture, fit) for batch in images.values() for picture in batch]
    counted = _checked_weights(weights, len(fitted), combination)
    is_global = adapter.layout.is_global
    encoded = [encode_crops(encoder, crops, is_global) for crops in fitted]
    pictures, counted = combine_pictures(encoded, counted, combination)
    reference = StyleReference(pictures, _negative(encoder, negative, fit, adapter.layout), counted)
    seen = torch.cat(fitted)
    return EncodedStyle(reference, adapter, thumbnail_of(seen)), seen


def _fit(encoder: Any, picture: Tensor, fit: Fit) -> Tensor:
    return fit_picture(picture, encoder.image_size, fit, encoder.image_mean)


def _negative(encoder: Any, negative: Tensor | None, fit: Fit, layout: Layout) -> Tensor:
    if negative is None and layout.nothing_is_black:
        return encode_crops(encoder, torch.zeros(1, encoder.image_size, encoder.image_size, 3), layout.is_global)
    if negative is None:
        return encode_nothing(encoder, layout.is_global)
    check_picture(negative, "The image at 'negative'")
    crops = torch.cat([_fit(encoder, picture, fit) for picture in negative])
    return encode_crops(encoder, crops, layout.is_global).mean(dim=0, keepdim=True)


def _checked_weights(weights: Sequence[float], pictures: int, combination: Combination) -> Sequence[float]:
    if not weights:
        return [1.0] * pictures
    if len(weights) != pictures:
        raise ValueError(
            f"There are {pictures} pictures but {len(weights)} weights. Write one weight a picture, or none."
        )
    if combination == "concatenate" and min(weights) <= 0:
        raise ValueError(
            "With 'concatenate' every weight must be above 0. Leave a picture out, or use 'add' or 'subtract'."
        )
    if combination in ("average", "norm average") and sum(weights) == 0:
        raise ValueError("The weights sum to 0, so there is no average. Change one of them.")
    return weights
