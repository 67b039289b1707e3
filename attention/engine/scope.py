"""Where, when and on which part of the picture the user wants a method."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .call import AttentionSite
from .moment import Moment, RunPlan

Keyframes = tuple[tuple[float, float], ...]
"""Pairs of (place in the window, weight), in rising order; both ends hold beyond the first and the last."""
CURVES: Mapping[str, Keyframes] = {
    "constant": ((0.0, 1.0),),
    "fade in": ((0.0, 0.0), (1.0, 1.0)),
    "fade out": ((0.0, 1.0), (1.0, 0.0)),
    "rise and fall": ((0.0, 0.0), (0.5, 1.0), (1.0, 0.0)),
    "fall and rise": ((0.0, 1.0), (0.5, 0.0), (1.0, 1.0)),
}


@dataclass(frozen=True)
class ScheduleWindow:
    """The part of the run a method acts in, and its weight along it."""

    start: float = 0.0
    end: float = 1.0
    curve: Keyframes = CURVES["constant"]
    may_be_empty: bool = False
    """Whether a window that begins where it ends, or later, is right: it meets a step exactly there, or none."""

    def __post_init__(self) -> None:
        if not (0.0 <= self.start <= 1.0 and 0.0 <= self.end <= 1.0):
            raise ValueError(f"Start is {self.start:g} and end {self.end:g}; both must lie between 0 and 1.")
        if self.start >= self.end and not self.may_be_empty:
            raise ValueError(
                f"Start ({self.start:g}) must come before end ({self.end:g}). Swap them or widen the window."
            )

    def weight(self, moment: Moment) -> float:
        """The curve's weight at `moment`, 0 outside the window."""
        # By noise level, for steps that fall on an edge: they must round as under the host's own percentages.
        if not moment.sigma_at(self.end) <= moment.sigma <= moment.sigma_at(self.start):
            return 0.0
        length = self.end - self.start
        place = min(max((moment.progress - self.start) / length, 0.0), 1.0) if length > 0 else 0.0
        before = max((frame for frame in self.curve if frame[0] <= place), default=self.curve[0])
        after = min((frame for frame in self.curve if frame[0] >= place), default=self.curve[-1])
        if after[0] == before[0]:
            return before[1]
        return before[1] + (after[1] - before[1]) * (place - before[0]) / (after[0] - before[0])

    def meets(self, plan: RunPlan) -> bool:
        """Whether any step of a run has a weight."""
        return any(map(self.weight, plan.looked_at))

    def missed(self, plan: RunPlan) -> str:
        """Why no step of a run is met, and what to do."""
        if not plan.moments:
            return "its SIGMAS hold one noise level, and so there is no step. Connect at least two."
        steps = ", ".join(f"{moment.progress:.2g}" for moment in plan.moments)
        return (
            f"no step has a weight between start {self.start:g} and end {self.end:g}. Its steps lie at {steps} of the "
            "noise schedule. Widen the window, or take more steps."
        )


@dataclass(frozen=True, eq=False)
class ImageMask:
    """Where in the picture a method acts: one mask for all, one per image, or one per reference picture."""

    values: Tensor  # (masks, height, width) in [0, 1], of any size
    feather: bool = True
    """Whether grey stays grey; otherwise the mask is binarised at one half, as diffusers does."""
    straight: bool = False
    """Whether it is resized straight to the tokens, bilinearly, as ComfyUI_IPAdapter_plus does, without `feather`."""
    repeats: bool = False
    """Whether any number of masks is right: the last holds for all further images, and surplus ones for none."""

    def __post_init__(self) -> None:
        if self.values.ndim != 3 or 0 in self.values.shape:
            raise ValueError(
                f"The mask has shape {tuple(self.values.shape)}; expected (masks, height, width), none of them 0."
            )
        if not torch.isfinite(self.values).all():
            raise ValueError(
                "The mask holds values that are not numbers (NaN or infinite). Repaint it or bypass its source."
            )
        if not self.values.any():
            raise ValueError(
                "The mask is empty (all black), so nothing would change. Paint the area to change in white."
            )

    def __repr__(self) -> str:
        masks, height, width = self.values.shape
        return f"{masks} mask{'' if masks == 1 else 's'} of {width}x{height}"


@dataclass(frozen=True, eq=False)
class Scope:
    """Where (blocks with weights), when (window) and on which area (mask) the user wants a method."""

    blocks: Mapping[str, float]
    """Weight by block name, e.g. `output.1`; a block left out has weight 0."""
    window: ScheduleWindow = field(default_factory=ScheduleWindow)
    mask: ImageMask | None = None

    def weight(self, site: AttentionSite, moment: Moment) -> float:
        """How strongly a method acts at `site` now: the block's weight times the curve's."""
        block = self.blocks.get(site.block, 0.0)
        return block * self.window.weight(moment) if block else 0.0

    def advice(self, plan: RunPlan, method: str) -> tuple[str, ...]:
        """A sentence for the user if the window meets no step of the run, else none."""
        if not any(self.blocks.values()) or self.window.meets(plan):
            return ()
        return (f"{method} does nothing in this run: {self.window.missed(plan)}",)

    def __repr__(self) -> str:
        chosen = ", ".join(f"{name}={weight:g}" for name, weight in self.blocks.items() if weight)
        window = (
            "" if (self.window.start, self.window.end) == (0, 1) else f", {self.window.start:g} to {self.window.end:g}"
        )
        curve = "" if self.window.curve == CURVES["constant"] else f", curve {self.window.curve}"
        mask = f", {self.mask}" if self.mask else ""
        return f"{chosen or 'no block'}{window}{curve}{mask}"


def finite(number: float, what: str) -> float:
    """`number`, refused when it is NaN or infinite."""
    if not math.isfinite(number):
        raise ValueError(f"{what} is {number}, which is not a number to calculate with. Enter a finite one.")
    return number
