"""The weights of the SDXL-like UNet, laid into the SD 1.5-like one to start its training from.

Both have the same levels at the same widths, but for one more at the bottom of SD 1.5's, whose blocks start fresh.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

EXTRA_DECODER_BLOCKS = 3  # those of the lowest level, which SD 1.5 runs first


@torch.no_grad()
def graft(unet: Any, donor: Mapping[str, Tensor], topology: str) -> int:
    """Copies into `unet` every weight of `donor` that has a place there, and returns how many it copied."""
    copied = 0
    for name, weight in unet.state_dict().items():
        given = donor.get(donor_name(name) if topology == "sd15" else name)
        fitted = None if given is None else fit(given.to(weight), weight.shape)
        if fitted is not None:
            weight.copy_(fitted)
            copied += 1
    return copied


def donor_name(name: str) -> str:
    """Where a weight of the SD 1.5-like UNet stands in the SDXL-like one, if anywhere."""

    def shifted(match: re.Match[str]) -> str:
        return f"output_blocks.{int(match[1]) - EXTRA_DECODER_BLOCKS}."

    return re.sub(r"^output_blocks\.(\d+)\.", shifted, name)


def fit(weight: Tensor, shape: torch.Size) -> Tensor | None:
    """The weight in another shape: a linear layer as a 1x1 convolution, or two text encoders' columns added up."""
    if weight.shape == shape:
        return weight
    if weight.numel() == shape.numel():
        return weight.reshape(shape)
    if weight.ndim == len(shape) == 2 and weight.shape == (shape[0], 2 * shape[1]):
        return weight[:, : shape[1]] + weight[:, shape[1] :]
    return None
