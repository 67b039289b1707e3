"""FreeU (arXiv:2309.11497): amplified backbone features, skip connections with damped low frequencies."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_fft: Any = torch.fft  # has no types

CUT = 1
"""Frequencies up to this many periods per picture, in each direction, count as low."""


def strengthen(hidden: Tensor, factor: float) -> Tensor:
    """`hidden` (rows, channels, height, width) with the first half of its channels multiplied by `factor`."""
    half = hidden.shape[1] // 2
    return torch.cat([hidden[:, :half] * factor, hidden[:, half:]], dim=1)


def damp_low_frequencies(skip: Tensor, factor: float) -> Tensor:
    """`skip` (rows, channels, height, width) with its lowest frequencies times `factor`, computed in float32."""
    height, width = skip.shape[-2:]
    spectrum: Tensor = _fft.fftshift(_fft.fftn(skip.float(), dim=(-2, -1)), dim=(-2, -1))
    rows = slice(height // 2 - CUT, height // 2 + CUT)
    columns = slice(width // 2 - CUT, width // 2 + CUT)
    scale = torch.ones((height, width), device=skip.device)
    scale[rows, columns] = factor
    spectrum = _fft.ifftshift(spectrum * scale, dim=(-2, -1))
    damped: Tensor = _fft.ifftn(spectrum, dim=(-2, -1)).real
    return damped.to(skip.dtype)
