"""Pictures sharpened as ComfyUI_IPAdapter_plus does it: each pixel against its neighbours, the more the flatter they
are (contrast-adaptive sharpening)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

LEAST, MOST = 1 / 8, 1 / 5
"""The share of its neighbours that a pixel loses, at an amount of 0 and of 1."""


def sharpened(images: Tensor, amount: float) -> Tensor:
    """Images (images, height, width, 3) in [0, 1], sharpened by an `amount` in [0, 1]; 0 leaves them as they are."""
    if amount == 0:
        return images
    pixels = functional.pad(images.movedim(-1, 1), (1, 1, 1, 1))
    height, width = images.shape[1:3]

    def shifted(down: int, across: int) -> Tensor:
        return pixels[..., 1 + down : 1 + down + height, 1 + across : 1 + across + width]

    middle = shifted(0, 0)
    sides = torch.stack([shifted(*way) for way in ((-1, 0), (0, -1), (0, 1), (1, 0))])
    corners = torch.stack([shifted(*way) for way in ((-1, -1), (-1, 1), (1, -1), (1, 1))])
    cross = torch.cat([sides, middle.unsqueeze(0)])
    darkest = cross.amin(dim=0).clamp(min=0) + corners.amin(dim=0).clamp(min=0)
    lightest = cross.amax(dim=0).clamp(max=1) + corners.amax(dim=0).clamp(max=1)
    share = -(torch.minimum(darkest, 2 - lightest) / lightest).sqrt() * (LEAST + amount * (MOST - LEAST))
    # Where all is black, 0 / 0 is not a number.
    sharp = ((middle + share * sides.sum(dim=0)) / (1 + 4 * share)).nan_to_num(nan=0.0)
    return sharp.clamp(0, 1).movedim(1, -1)
