"""Colour spaces of the drawn world: OKLab for choosing colours, CIE Lab (D65) for measuring distances."""

import torch
from torch import Tensor

_OKLAB_TO_LMS = torch.tensor(
    [[1.0, 0.3963377774, 0.2158037573], [1.0, -0.1055613458, -0.0638541728], [1.0, -0.0894841775, -1.2914855480]]
)
_LMS_TO_RGB = torch.tensor(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)
_RGB_TO_XYZ = torch.tensor(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_WHITE_D65 = torch.tensor([0.95047, 1.0, 1.08883])


def oklch_to_srgb(oklch: Tensor) -> Tensor:
    """Turns (..., 3) lightness 0..1, chroma, hue in radians into sRGB 0..1, clipped to the gamut.

    Source: Björn Ottosson, "A perceptual color space for image processing" (2020).
    """
    lightness, chroma, hue = oklch.unbind(-1)
    oklab = torch.stack([lightness, chroma * hue.cos(), chroma * hue.sin()], dim=-1)
    lms = (oklab @ _OKLAB_TO_LMS.to(oklab).T) ** 3
    linear = (lms @ _LMS_TO_RGB.to(oklab).T).clamp(0.0, 1.0)
    return torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear.clamp_min(1e-8) ** (1 / 2.4) - 0.055)


def srgb_to_lab(srgb: Tensor) -> Tensor:
    """Turns (..., 3) sRGB 0..1 into CIE Lab under D65: lightness 0..100, so that distances read as Delta E 1976."""
    linear = torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb.clamp_min(0.0) + 0.055) / 1.055) ** 2.4)
    xyz = linear @ _RGB_TO_XYZ.to(srgb).T / _WHITE_D65.to(srgb)
    delta = 6 / 29
    f = torch.where(xyz > delta**3, xyz.clamp_min(1e-8) ** (1 / 3), xyz / (3 * delta**2) + 4 / 29)
    x, y, z = f.unbind(-1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=-1)
