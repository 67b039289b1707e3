"""Several encoded pictures made one, in the ways and under the names of ComfyUI_IPAdapter_plus.

They work channel by channel, on what the image encoder gives. InstantStyle's own ways, in `embeddings`, take weights
and keep lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

PictureSum = Literal["concat", "add", "subtract", "average", "norm average", "max", "min"]
PICTURE_SUMS: tuple[PictureSum, ...] = get_args(PictureSum)
APPLIED_SUMS: tuple[PictureSum, ...] = PICTURE_SUMS[:5]
"""Those that a picture can be applied with."""


def summed_pictures(pictures: Sequence[Tensor], how: PictureSum) -> tuple[Tensor, ...]:
    """Encoded pictures of one shape as one, or with `concat` all of them. One picture alone stays as it is.

    - add: the sum.
    - subtract: the first less the mean of the others.
    - average: the mean.
    - norm average: the mean of each channel by its length over the pictures.
    - max, min: the largest or smallest of each channel.
    """
    if how == "concat" or len(pictures) == 1:
        return tuple(pictures)
    stacked = torch.stack(list(pictures))
    if how == "subtract":
        return (stacked[0] - stacked[1:].mean(dim=0),)
    if how == "norm average":
        lengths = stacked.square().sum(dim=0, keepdim=True).sqrt()
        # A channel that is 0 in all pictures, as in those of nothing, has no direction and stays 0.
        return ((stacked / lengths.where(lengths > 0, 1)).mean(dim=0),)
    ways = {"add": stacked.sum, "average": stacked.mean, "max": stacked.amax, "min": stacked.amin}
    return (ways[how](dim=0),)
