"""FreeU (arXiv:2309.11497): stronger backbone features, skip connections with less of their low frequencies."""

from __future__ import annotations

import torch
from torch import Tensor

CUT = 1
"""Frequencies up to this many periods a picture, in each direction, count as low."""


def strengthen(hidden: Tensor, factor: float) -> Tensor:
    """The first half of the channels times `factor`: (rows, channels, height, width)."""
    half = hidden.shape[1] // 2
    return torch.cat([hidden[:, :half] * factor, hidden[:, half:]], dim=1)


def damp_low_frequencies(skip: Tensor, factor: float) -> Tensor:
    """The lowest frequencies of each channel times `factor`, in float32: (rows, channels, height, width)."""
    height, width = skip.shape[-2:]
    spectrum = torch.fft.fftshift(torch.fft.fftn(skip.float(), dim=(-2, -1)), dim=(-2, -1))
    rows = slice(height // 2 - CUT, height // 2 + CUT)
    columns = slice(width // 2 - CUT, width // 2 + CUT)
    scale = torch.ones((height, width), device=skip.device)
    scale[rows, columns] = factor
    spectrum = torch.fft.ifftshift(spectrum * scale, dim=(-2, -1))
    return torch.fft.ifftn(spectrum, dim=(-2, -1)).real.to(skip.dtype)
