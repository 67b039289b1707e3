"""How strongly an image is listened to: by the weight of what attention gives, or by its keys and values.

Scaled keys make attention to an image sharper or flatter besides. The four ways, and their names, are those that
workflows for ComfyUI_IPAdapter_plus are made with; "V only" is IP-Adapter's own (arXiv:2308.06721, eq. 5).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

KeyScaling = Literal["V only", "K+V", "K+V w/ C penalty", "K+mean(V) w/ C penalty"]
KEY_SCALINGS: tuple[KeyScaling, ...] = get_args(KeyScaling)
WIDEST = 1280
"""Channels of the widest layers of SD 1.5 and SDXL; with the C penalty narrower layers weigh less."""


def scaled_keys(
    key: Tensor, value: Tensor, weight: float | Tensor, scaling: KeyScaling, tokens: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Image keys and values (..., tokens, channels) at a weight (a number, or one that broadcasts to them).

    `tokens` is how many tokens each picture has, in their order. Those of "V only" stay as they are: there the weight
    multiplies what attention gives.
    """
    if scaling == "V only":
        return key, value
    if scaling == "K+V":
        return key * weight, value * weight
    weight = weight * (key.shape[-1] / WIDEST)
    if scaling == "K+V w/ C penalty":
        return key * weight, value * weight
    return key * weight, value + (weight - 1) * _mean_of_each_picture(value, tokens)


def _mean_of_each_picture(value: Tensor, tokens: Sequence[int]) -> Tensor:
    pictures = torch.split(value, list(tokens), dim=-2)
    return torch.cat([picture.mean(dim=-2, keepdim=True).expand_as(picture) for picture in pictures], dim=-2)
