"""Pictures as an IP-Adapter's encoder sees them, fitted as ComfyUI itself does and not as the authors' code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from comfy.clip_model import clip_preprocess
from torch import Tensor
from torch.nn import functional

from ..instantstyle.vision import encode_pixels_once
from .prepared_pictures import square_of


@dataclass(frozen=True, eq=False)
class EncodedPictures:
    """Pictures after an image encoder and before an adapter's projector, for both sides of guidance."""

    pictures: tuple[Tensor, ...]  # each (1, channels), or (1, patches, channels); a reference's may have more crops
    negatives: tuple[Tensor, ...]  # the same with one crop each, at least one
    weights: tuple[float, ...] = ()
    """By picture: the number of copies that attention counts, or its strength in an image of its own. Empty: 1 each."""

    def negatives_for(self, count: int) -> tuple[Tensor, ...]:
        """So many negatives: surplus ones are left out, missing ones are the last one again."""
        return tuple(self.negatives[min(number, len(self.negatives) - 1)] for number in range(count))


def encode_pictures(encoder: Any, images: Tensor, is_global: bool, mask: Tensor | None = None) -> tuple[Tensor, ...]:
    """Each of `images` (images, height, width, 3) in [0, 1] by itself, float32 on the CPU.

    A `mask` (masks, height, width) darkens the normalised pixels that it leaves out; the last one holds for all further
    images.
    """
    pixels = normalised(encoder, images)
    if mask is not None:
        shown = _mask_for_encoder(mask, encoder.image_size)
        pixels = pixels * shown[[min(row, len(shown) - 1) for row in range(len(pixels))]]
    return encode_pixels_once(encoder, pixels, is_global).split(1)


def encode_nothing(encoder: Any, is_global: bool) -> tuple[Tensor, ...]:
    """The side without a picture: a zero embedding, or the states of a black picture, which the authors' are not."""
    if is_global:
        return (torch.zeros(1, encoder.config["projection_dim"]),)
    return encode_pictures(encoder, torch.zeros(1, encoder.image_size, encoder.image_size, 3), is_global)


def encode_in_tiles(encoder: Any, images: Tensor, is_global: bool, tiles: int, ratio: float) -> tuple[Tensor, ...]:
    """Each picture whole and in `tiles` by `tiles` parts, at `ratio` of the whole.

    One picture becomes two, its whole at `ratio` and its parts; of several each becomes the mix of both.
    """
    whole = encode_pictures(encoder, images, is_global)
    parts = [_joined_tiles(encoder, image, is_global, tiles) for image in images.split(1)]
    if len(whole) == 1:
        return ratio * whole[0], parts[0]
    return tuple(ratio * one + (1 - ratio) * other for one, other in zip(whole, parts, strict=True))


def normalised(encoder: Any, images: Tensor) -> Tensor:
    """Images (images, height, width, 3) as the encoder gets them, (images, 3, size, size)."""
    mean, deviation = encoder.image_mean, encoder.image_std
    return clip_preprocess(images.float(), encoder.image_size, mean, deviation, crop=True)


def _joined_tiles(encoder: Any, image: Tensor, is_global: bool, tiles: int) -> Tensor:
    height, width = image.shape[1] // tiles, image.shape[2] // tiles
    cut = [
        image[:, row * height : (row + 1) * height, column * width : (column + 1) * width]
        for row in range(tiles)
        for column in range(tiles)
    ]
    encoded = torch.cat(encode_pictures(encoder, torch.cat(cut), is_global))
    return join_embeddings(encoded, tiles) if is_global else join_patches(encoded, tiles)


def join_patches(states: Tensor, tiles: int) -> Tensor:
    """States of tiles (tiles * tiles, 1 + patches, channels) as of one picture, (1, 1 + patches, channels).

    The patches lie where their tiles were and are averaged down to one grid; so are the class tokens to one.
    """
    side = int((states.shape[1] - 1) ** 0.5)
    patches = states[:, 1:].unflatten(1, (side, side)).unflatten(0, (tiles, tiles))
    return torch.cat([states[:, :1].mean(dim=0), _averaged(patches, tiles)]).unsqueeze(0)


def join_embeddings(embeddings: Tensor, tiles: int) -> Tensor:
    """Embeddings of tiles (tiles * tiles, channels) as of one picture, (1, channels).

    IPAdapter_plus takes the channels of a square number of them for the pixels of a square, which mixes them; where
    they are none it stops, and here the embeddings are averaged.
    """
    channels = embeddings.shape[1]
    side = int(channels**0.5)
    if side * side != channels:
        return embeddings.mean(dim=0, keepdim=True)
    return _averaged(embeddings.reshape(tiles, tiles, side, side, 1), tiles).T


def _averaged(grids: Tensor, tiles: int) -> Tensor:
    """Grids of tiles (tiles, tiles, rows, columns, channels), laid side by side and averaged down to one,
    (rows * columns, channels)."""
    whole = grids.permute(4, 0, 2, 1, 3).flatten(3).flatten(1, 2)  # (channels, all rows, all columns)
    return functional.avg_pool2d(whole, tiles).flatten(1).T


def _mask_for_encoder(mask: Tensor, size: int) -> Tensor:
    """The middle square of masks, as large as the encoder's picture: (masks, 1, size, size)."""
    return functional.interpolate(square_of(mask).unsqueeze(1).float(), (size, size), mode="bicubic", antialias=True)


def weighted(pictures: Sequence[Tensor], weight: float) -> tuple[Tensor, ...]:
    """Encoded pictures times a number."""
    return tuple(picture * weight for picture in pictures)
