"""The settings of ConsiStory, with the defaults of the authors' code."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ...engine.call import BlockCall
from ...engine.moment import Moment
from ...functional.free_u import damp_low_frequencies, strengthen

UNEVEN = 10_000
"""Where the numbers of draws begin for steps that no evenly spaced run has: one for each tenth of a timestep."""


@dataclass(frozen=True)
class StepRange:
    """The noise levels that a plain run has from one fraction of its steps to another, both included.

    In evenly spaced timesteps, such as the authors' fifty, these are the steps that their code counts. Under other
    schedulers, and in samplers that take a part of the steps, they are those of the same noise.
    """

    start: float
    end: float

    def contains(self, moment: Moment) -> bool:
        begin, end = moment.span
        slack = 0.01 * (end - begin)
        return (self.start <= 0 or self.start < end - slack) and (self.end >= 1 or begin <= self.end + slack)


@dataclass(frozen=True)
class MaskDropout:
    """Which tokens of the subject are hidden from the other images, drawn anew at each noise level."""

    fraction: float = 0.5
    seed: int = 0

    def at(self, moment: Moment, images: int, grid: tuple[int, int]) -> Tensor:
        """The draw at a noise level: the same one in every sampler that takes this step, alone or among others."""
        number = moment.number
        return self.draw(int(number) if number.is_integer() else UNEVEN + round(moment.span[1] * UNEVEN), images, grid)

    def draw(self, step: int, images: int, grid: tuple[int, int]) -> Tensor:
        """True where a token is dropped: bool (images, height * width). More images change no image's draws."""
        height, width = grid
        drawn: list[Tensor] = []
        for image in range(images):
            number = ((self.seed * 1009 + step) * 1009 + image) * 1_000_003 + height * width
            generator = torch.Generator().manual_seed(number % 2**63)
            drawn.append(torch.rand(height * width, generator=generator) < self.fraction)
        return torch.stack(drawn)


@dataclass(frozen=True)
class Sharing:
    """Subject-driven self-attention."""

    strength: float = 1.0
    anchors: int = 2
    """How many images, the first of the batch, all others attend to; 0 for every image."""
    dropout: MaskDropout = field(default_factory=MaskDropout)

    def sources(self, image: int, images: int) -> list[int]:
        """The images that one attends to."""
        return [other for other in range(self.anchors_among(images)) if other != image]

    def anchors_among(self, images: int) -> int:
        """How many of a batch of `images` are anchors."""
        return min(self.anchors or images, images)


KEPT_QUERIES = 0.04
"""How much more memory than ComfyUI reckons an image takes while its queries are kept for blending, as a fraction.

Measured on SDXL at 1024 pixels in half precision, for 4, 8 and 12 images.
"""


@dataclass(frozen=True)
class QueryBlend:
    """Queries of the model without sharing, mixed in at the first steps so that layouts stay different."""

    strength: float = 1.0
    first: float = 0.9
    last: float = 0.81836735
    until: float = 0.1
    """Fraction of the steps of a plain run."""

    def weight(self, moment: Moment) -> float:
        if not StepRange(0.0, self.until).contains(moment):
            return 0.0
        begin, end = moment.span
        last = max(int(self.until / (end - begin) + 0.01), 1) if end > begin else 1
        fraction = min(max(moment.number / last, 0.0), 1.0)
        return self.strength * (self.first + (self.last - self.first) * fraction)


@dataclass(frozen=True)
class Injection:
    """Features copied along matches between images, in the last pass."""

    strength: float = 0.8
    window: StepRange = field(default_factory=lambda: StepRange(0.1, 0.3334))
    in_turn: bool = True
    """Each image copies from images that have copied themselves, as in the authors' code; otherwise from images as they
    were before any copying."""


@dataclass(frozen=True)
class FreeU:
    """Backbone and skip factors (b, s) of the decoder's two coarsest levels."""

    backbone: tuple[float, float] = (1.1, 1.2)
    skip: tuple[float, float] = (0.6, 0.4)

    def edits(self, block: str) -> bool:
        return self._level(block) is not None

    def edit(self, call: BlockCall) -> BlockCall:
        """`call` with a stronger backbone and smoother skip features, at one of the levels.

        Of several stories on a model with the same factors the first does it for all.
        """
        level = self._level(call.block)
        if level is None or self in call.done:
            return call
        hidden = strengthen(call.hidden, self.backbone[level])
        skip = damp_low_frequencies(call.skip, self.skip[level])
        return replace(call, hidden=hidden, skip=skip, done=call.done | {self})

    def _level(self, block: str) -> int | None:
        part, number = block.split(".")
        level = int(number) // 3
        return level if part == "output" and level < 2 else None
