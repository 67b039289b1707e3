"""What a tuning shows of itself while it runs, and says when it is done."""

from __future__ import annotations

from typing import Any

import comfy.utils
import torch
from torch import Tensor

from ..blocked import not_made
from ..display import show_text
from ..pictures import image_of
from .loss_chart import smoothed
from .memory import MemoryEstimate, size_of
from .previews import Preview
from .tuning import Tuned, TuningStep

PREVIEW_SIDE = 512
"""Pixels of a preview's long side in the browser."""


class Watch:
    """Shows a tuning while it runs: progress and loss at every step, and pictures every so many."""

    def __init__(self, node_id: str | None, said: str, steps: int, every: int, preview: Preview | None) -> None:
        self._node_id, self._said, self._every, self._preview = node_id, said, every, preview
        self._bar = comfy.utils.ProgressBar(steps, node_id)
        self._pictures: list[Tensor] = []
        show_text(node_id, said)

    def after(self, step: TuningStep) -> bool:
        """Told of every step; returns whether it sampled."""
        show_text(self._node_id, f"{self._said}\n{line_of(step)}")
        if self._preview is None or (step.done % self._every and step.done != step.steps):
            self._bar.update_absolute(step.done, step.steps)
            return False
        pictures = self._preview.pictures(step.model)
        self._pictures.append(pictures)
        image = image_of(pictures.transpose(0, 1).flatten(1, 2))  # side by side
        self._bar.update_absolute(step.done, step.steps, ("JPEG", image, PREVIEW_SIDE))
        return True

    def pictures(self) -> Any:
        """All previews as one batch."""
        if not self._pictures:
            return not_made("Tune Style sampled no previews: set preview_every to a number of steps.")
        return torch.cat(self._pictures)


def report_of(tuned: Tuned, model: Any, memory: MemoryEstimate) -> str:
    """The lines under a node that has tuned."""
    adapter = tuned.adapter
    parameters = sum(weight.numel() for weight in model.model.diffusion_model.parameters())
    mean = smoothed(tuned.losses)
    peak = f"; {size_of(tuned.peak)} were taken at most" if tuned.peak else ""
    return "\n".join(
        (
            f"{adapter.form} of width {adapter.width} at {len(adapter.modules)} layers: {adapter.parameters:,} "
            f"parameters, {adapter.parameters / parameters:.2%} of the model's, "
            f"{adapter.parameters * 4 / 2**20:.1f} MB.",
            f"{len(tuned.losses)} steps, {tuned.done} in all; loss {mean[0]:.3f} at first, {mean[-1]:.3f} at the end.",
            f"{tuned.seconds:.2f} s a step; memory {memory}{peak}.",
        )
    )


def line_of(step: TuningStep) -> str:
    """The line on the node after a step."""
    return f"Step {step.done} of {step.steps}, loss {step.loss:.3f}"
