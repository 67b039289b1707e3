"""Noisy pictures to steer away from, as ComfyUI_IPAdapter_plus makes them.

The noise hangs on the picture alone, by its sum, and is drawn on the CPU. No number is taken from torch's own
generator, on which other nodes may count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from ..pictures import check_picture
from .prepared_pictures import square_of

Noise = Literal["fade", "dissolve", "gaussian", "shuffle"]
NOISES: tuple[Noise, ...] = get_args(Noise)
SIZE = 224
"""Pixels of a side of the noise."""
SEEDS = 1000000007
BENT = 75.0
"""How far `shuffle` bends a picture."""


@dataclass(frozen=True, eq=False)
class _Draw:
    """Random numbers for pixels (images, 3, height, width)."""

    generator: torch.Generator
    channels_first: bool
    """In which order the pixels take their numbers, as they lie in IPAdapter_plus' memory."""

    def uniform(self, like: Tensor) -> Tensor:
        return self._empty(like).uniform_(generator=self.generator).movedim(-1, 1)

    def normal(self, like: Tensor) -> Tensor:
        return self._empty(like).normal_(generator=self.generator).movedim(-1, 1)

    def _empty(self, like: Tensor) -> Tensor:
        """Memory (images, height, width, 3); torch fills what is not contiguous in another way."""
        pixels = torch.empty_like(like, memory_format=torch.contiguous_format).movedim(1, -1)
        return pixels if self.channels_first else torch.empty_like(pixels, memory_format=torch.contiguous_format)


def noise_picture(kind: Noise, strength: float, blur: int, images: Tensor | None = None) -> Tensor:
    """Pictures (images, height, width, 3) in [0, 1] given over to noise, by a strength in [0, 1], as squares of SIZE.

    Without pictures the noise begins with a black one. `blur` is the width of the final blur in pixels; 0 is none.
    Raises ValueError for pictures that cannot be used.
    """
    if images is None:
        images = torch.zeros(1, SIZE, SIZE, 3)
    check_picture(images, "The image")
    pixels, one_wide = _squares(images), len(images) == 1 and images.shape[2] > images.shape[1]
    seed = int(pixels.sum()) % SEEDS
    noisy = NOISE_OF[kind](pixels, strength, _Draw(torch.Generator().manual_seed(seed), one_wide)).clamp(0, 1)
    if blur:
        width = blur + 1 - blur % 2
        noisy = _blurred(noisy, width, 0.3 * ((width - 1) * 0.5 - 1) + 0.8)
    return noisy.movedim(1, -1).contiguous()


def _squares(images: Tensor) -> Tensor:
    """Their middle squares, (images, 3, SIZE, SIZE)."""
    square = square_of(images).float().cpu().movedim(-1, 1).contiguous()
    return functional.interpolate(square, (SIZE, SIZE), mode="bicubic", antialias=True)


def _fade(pixels: Tensor, strength: float, draw: _Draw) -> Tensor:
    return pixels * (1 - strength) + draw.uniform(pixels) * strength


def _dissolve(pixels: Tensor, strength: float, draw: _Draw) -> Tensor:
    chosen = draw.uniform(pixels) < strength
    return torch.where(chosen, draw.uniform(pixels), pixels)


def _gaussian(pixels: Tensor, strength: float, draw: _Draw) -> Tensor:
    return pixels + strength * draw.normal(pixels)


def _shuffle(pixels: Tensor, strength: float, draw: _Draw) -> Tensor:
    bent = _moved(pixels, _displacement(3.5 * (1 - strength), draw.generator))
    torch.rand(2, generator=draw.generator)  # both turns are certain, and draw a number each all the same
    noise = 0.75 * strength * draw.normal(pixels)
    return bent.flip(2, 3) * (1 - noise) + noise


NOISE_OF: Mapping[str, Callable[[Tensor, float, _Draw], Tensor]] = {
    "fade": _fade,
    "dissolve": _dissolve,
    "gaussian": _gaussian,
    "shuffle": _shuffle,
}


def _displacement(sigma: float, generator: torch.Generator) -> Tensor:
    """How far each pixel is moved across and down, (1, SIZE, SIZE, 2), as torchvision's ElasticTransform draws it."""
    moved: list[Tensor] = []
    for _ in range(2):
        random = torch.rand(1, 1, SIZE, SIZE, generator=generator) * 2 - 1
        if sigma > 0:
            width = int(8 * sigma + 1)
            random = _blurred(random, width + 1 - width % 2, sigma)
        moved.append(random * BENT / SIZE)
    return torch.cat(moved, dim=1).permute(0, 2, 3, 1)


def _moved(pixels: Tensor, displacement: Tensor) -> Tensor:
    """Pixels (images, channels, SIZE, SIZE) taken from elsewhere, in units of half a side; black comes in from outside.

    At the borders black counts twice, as in torchvision.
    """
    places = torch.linspace(1 / SIZE - 1, 1 - 1 / SIZE, SIZE)
    down, across = torch.meshgrid(places, places, indexing="ij")
    grid = (torch.stack([across, down], dim=-1) + displacement).expand(len(pixels), -1, -1, -1)
    inside = torch.cat([pixels, torch.ones_like(pixels[:, :1])], dim=1)
    moved = functional.grid_sample(inside, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return moved[:, :-1] * moved[:, -1:]


def _blurred(pixels: Tensor, width: int, sigma: float) -> Tensor:
    """Pixels (images, channels, height, width) under a Gaussian of an odd width, mirrored at the borders."""
    places = torch.linspace(-(width - 1) / 2, (width - 1) / 2, width)
    bell = torch.exp(-0.5 * (places / sigma).square())
    bell = bell / bell.sum()
    channels = pixels.shape[1]
    kernel = torch.outer(bell, bell).expand(channels, 1, width, width)
    return functional.conv2d(functional.pad(pixels, (width // 2,) * 4, mode="reflect"), kernel, groups=channels)
