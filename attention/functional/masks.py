"""Image masks, resized from any size to the token grid of an attention layer.

As in diffusers' IPAdapterMaskProcessor: Lanczos to the picture's size in 8 bits, binarised at one half, then bicubic
without antialiasing to the grid, which may overshoot [0, 1] a little at edges.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def fit_mask(mask: Tensor, height: int, width: int, feather: bool) -> Tensor:
    """`mask` (masks, any height, any width) in [0, 1], resized to (masks, height, width).

    Without `feather` each pixel becomes 0 or 1, as in diffusers.
    """
    levels = lanczos_8bit((mask.float().clamp(0, 1) * 255).round(), height, width)
    return levels / 255 if feather else (levels / 255 >= 0.5).float()


def mask_on_grid(mask: Tensor, height: int, width: int) -> Tensor:
    """`mask` (masks, any height, any width) on a token grid, -> (masks, height * width)."""
    grid = functional.interpolate(mask.unsqueeze(0), size=(height, width), mode="bicubic", align_corners=False)
    return grid.squeeze(0).flatten(1)


def mask_straight_on_tokens(mask: Tensor, height: int, width: int, tokens: int) -> Tensor:
    """`mask` (masks, any height, any width) on the tokens of a layer over a latent of this size, -> (masks, tokens).

    As ComfyUI_IPAdapter_plus does it: bilinear without antialiasing to the rows and columns that it works out from the
    number of tokens; where these are not that many, zeros stand on both sides, or both sides are cut.
    """
    rows = max(int(height / (height * width / tokens) ** 0.5), 1)
    rows += tokens % rows != 0
    grid = functional.interpolate(mask.unsqueeze(1), size=(rows, max(tokens // rows, 1)), mode="bilinear")
    flat = grid.flatten(1)
    missing = tokens - flat.shape[1]
    if missing >= 0:
        return functional.pad(flat, (missing // 2, missing - missing // 2))
    first = -missing // 2
    return flat[:, first : first + tokens]


def lanczos_8bit(levels: Tensor, height: int, width: int) -> Tensor:
    """Resizes grey levels 0..255 (masks, rows, columns) as Pillow's LANCZOS does, with rounding after each direction.

    Horizontal first, as in Pillow up to version 12. Version 13 starts with the vertical if the height shrinks far more.
    """
    across = _lanczos_weights(levels.shape[2], width).to(levels.device)
    down = _lanczos_weights(levels.shape[1], height).to(levels.device)
    resized = (levels.double() @ across.T).add(0.5).floor().clamp(0, 255)
    return (down @ resized).add(0.5).floor().clamp(0, 255).float()


def _lanczos_weights(size: int, target: int) -> Tensor:
    """The weight of each of `size` source pixels in each of `target` pixels, (target, size)."""
    if size == target:
        return torch.eye(size, dtype=torch.float64)
    scale = size / target
    stretch = max(scale, 1.0)
    support = 3.0 * stretch
    weights = torch.zeros((target, size), dtype=torch.float64)
    for pixel in range(target):
        center = (pixel + 0.5) * scale
        first, last = max(int(center - support + 0.5), 0), min(int(center + support + 0.5), size)
        distance = (torch.arange(first, last, dtype=torch.float64) - center + 0.5) / stretch
        window = torch.sinc(distance) * torch.sinc(distance / 3) * (distance.abs() < 3)
        weights[pixel, first:last] = window / window.sum()
    # Pillow rounds weights to 22 bits, which decides levels that fall exactly between two.
    return (weights * 2**22).round() / 2**22


def enlarge(masks: Tensor, height: int, width: int) -> Tensor:
    """Masks on a token grid (masks, rows, columns) as pixels (masks, height, width), each token a sharp rectangle."""
    return functional.interpolate(masks.unsqueeze(1), size=(height, width), mode="nearest-exact").squeeze(1)


def darken_outside(pictures: Tensor, masks: Tensor, light: float = 0.25) -> Tensor:
    """Pictures (images, height, width, channels), multiplied by `light` outside their masks (images, height, width).

    Raises ValueError if the numbers of pictures and masks differ.
    """
    if len(pictures) != len(masks):
        raise ValueError(
            f"There are {len(pictures)} pictures for {len(masks)} masks. Connect the VAE Decode of the same latent."
        )
    return pictures * torch.lerp(torch.full_like(masks, light), torch.ones_like(masks), masks).unsqueeze(3)
