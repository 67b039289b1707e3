"""A user's masks on the tokens of one attention."""

from __future__ import annotations

import torch
from torch import Tensor

from ..functional.masks import fit_mask, mask_on_grid, mask_straight_on_tokens
from .bank import FeatureBank
from .call import AttentionCall
from .layout import BatchLayout, Crop
from .scope import ImageMask
from .unexpected import UnexpectedCall

PIXELS_PER_LATENT = 8  # in SD 1.x and SDXL


def masks_on_tokens(mask: ImageMask, call: AttentionCall, bank: FeatureBank) -> Tensor:
    """Every mask on this layer's tokens, cropped as each chunk is: (masks, chunks, tokens, 1), once a run.

    Raises UnexpectedCall if a tiling node passes crops of the picture without saying which.
    """
    layout, size, query = call.layout, call.layout.latent_size, call.query
    if size is None:
        raise UnexpectedCall(
            "The model is shown parts of the picture and not told which, so the mask cannot be laid over them.",
            "Bypass the node that cuts the picture up, as Tiled Diffusion does, or remove the mask.",
        )

    def fit() -> Tensor:
        height, width = (side * PIXELS_PER_LATENT for side in size)
        return fit_mask(mask.values, height, width, mask.feather)

    def straight(crop: Crop | None) -> Tensor:
        height, width = size if crop is None else crop[:2]
        return mask_straight_on_tokens(_part(mask.values, size, crop).float(), height, width, query.shape[-2])

    def on_tokens() -> Tensor:
        if mask.straight:
            crops = [straight(chunk.crop) for chunk in layout.chunks]
        else:
            fitted = bank.once(("mask", size), fit)
            crops = [mask_on_grid(_part(fitted, size, chunk.crop), call.height, call.width) for chunk in layout.chunks]
        return torch.stack(crops, dim=1).unsqueeze(-1).to(query)

    crops = tuple(chunk.crop for chunk in layout.chunks)
    name = "mask on tokens", call.height, call.width, size, crops, query.device, query.dtype
    return bank.once(name, on_tokens)


def mask_per_image(mask: ImageMask, call: AttentionCall, bank: FeatureBank) -> Tensor:
    """One mask for all images, or one for each: (chunks, images or 1, tokens, 1).

    Raises ValueError for any other number of masks, unless the last one repeats.
    """
    count, images = len(mask.values), call.layout.batch_images
    if count not in (1, images) and not mask.repeats:
        raise ValueError(
            f"There are {count} masks for {images} images. Connect one mask, or one for each image of the batch."
        )
    on_tokens = masks_on_tokens(mask, call, bank).transpose(0, 1)
    if count == 1 or (count == images and call.layout.window is None):
        return on_tokens
    return on_tokens.index_select(1, _mask_indices(call.layout, count, on_tokens, bank))


def _mask_indices(layout: BatchLayout, masks: int, like: Tensor, bank: FeatureBank) -> Tensor:
    """For each row of a chunk, which of so many masks is its image's: (images,), on the device of `like`."""
    shown = tuple(min(image, masks - 1) for image in layout.image_indices)
    return bank.once(("mask indices", shown, like.device), lambda: torch.tensor(shown, device=like.device))


def _part(mask: Tensor, size: tuple[int, int], crop: Crop | None) -> Tensor:
    """The part of a mask of any size that a crop of a latent of this `size` shows."""
    if crop is None:
        return mask
    height, width, top, left = crop
    down, across = mask.shape[1] / size[0], mask.shape[2] / size[1]
    rows = slice(round(top * down), max(round((top + height) * down), round(top * down) + 1))
    columns = slice(round(left * across), max(round((left + width) * across), round(left * across) + 1))
    return mask[:, rows, columns]
