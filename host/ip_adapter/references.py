"""References of pictures as ComfyUI_IPAdapter_plus encodes them, and arithmetic of references."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...attention.engine.scope import ImageMask
from ...attention.functional.picture_sums import PictureSum, summed_pictures
from ...attention.references.style import StyleReference
from ..instantstyle.encoding import EncodedStyle
from ..pictures import check_picture
from ..thumbnails import joined_thumbnails, thumbnail_of
from .encoding import encode_nothing, encode_pictures, weighted
from .sources import PictureReader


def picture_reference(
    reader: PictureReader, images: Tensor, weight: float, mask: Tensor | None = None
) -> tuple[EncodedStyle, EncodedStyle]:
    """Pictures (images, height, width, 3) in [0, 1] as a reference, times a weight; and nothing, as another one.

    Of a picture the encoder sees what its `mask` (masks, height, width) shows in white. Nothing never has a weight.
    Raises ValueError for pictures, masks and encoders that cannot be used.
    """
    check_picture(images, "The image")
    shown = None if mask is None else ImageMask(mask).values
    encoder, is_global = reader.fitting_encoder, reader.adapter.layout.is_global
    pictures = weighted(encode_pictures(encoder, images, is_global, shown), weight)
    (nothing,) = encode_nothing(encoder, is_global)
    reference = StyleReference(pictures, nothing, (1.0,) * len(pictures))
    empty = StyleReference((nothing,), nothing, (1.0,))
    return EncodedStyle(reference, reader.adapter, thumbnail_of(images)), EncodedStyle(empty, reader.adapter, "")


def combined_references(styles: Sequence[EncodedStyle], how: PictureSum) -> EncodedStyle:
    """The pictures of several references as one reference, for the adapter of the first.

    Different negatives are averaged. Raises ValueError for references of different image encoders or kinds, and for
    sums of pictures that differ in their tiles or counts.
    """
    _check_alike(styles)
    references = [style.reference for style in styles]
    pictures = [picture for reference in references for picture in reference.pictures]
    counts = [count for reference in references for count in reference.weights]
    if how != "concat":
        _check_summable(pictures, counts)
    joined = summed_pictures(pictures, how)
    words = dict.fromkeys(subtraction for reference in references for subtraction in reference.subtracted)
    reference = StyleReference(
        joined,
        _mean([reference.negative for reference in references]),
        tuple(counts) if len(joined) == len(counts) else (1.0,),
        tuple(words),
    )
    return EncodedStyle(reference, styles[0].adapter, joined_thumbnails([style.thumbnail for style in styles]))


def _mean(negatives: Sequence[Tensor]) -> Tensor:
    first, *others = negatives
    return first if all(torch.equal(first, other) for other in others) else torch.stack(list(negatives)).mean(dim=0)


def _check_alike(styles: Sequence[EncodedStyle]) -> None:
    first = styles[0]
    for number, style in enumerate(styles[1:], 2):
        if style.reference.negative.shape != first.reference.negative.shape:
            raise ValueError(
                f"Reference 1 was made for '{first.adapter.layout}' and reference {number} for "
                f"'{style.adapter.layout}', which read pictures in different ways. Encode all of them with one adapter."
            )


def _check_summable(pictures: Sequence[Tensor], counts: Sequence[float]) -> None:
    if len({picture.shape for picture in pictures}) > 1:
        raise ValueError(
            "The references' pictures are cut into different numbers of tiles, so only 'concat' takes them. Encode "
            "them with the fit 'crop' or 'pad'."
        )
    if any(count != 1 for count in counts) and len(pictures) > 1:
        raise ValueError(
            f"A reference counts its pictures {', '.join(f'{count:g}' for count in counts)} times, which only 'concat' "
            "keeps. Choose that, or encode the pictures one by one with Encode Picture and its weight."
        )
