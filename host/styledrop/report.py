"""What a tuning says of itself while it runs and when it is done."""

from __future__ import annotations

from typing import Any

from .loss_chart import smoothed
from .memory import MemoryEstimate, size_of
from .tuning import Tuned, TuningStep


def report_of(tuned: Tuned, model: Any, memory: MemoryEstimate) -> str:
    """The lines under a node that has tuned."""
    adapter = tuned.adapter
    parameters = sum(weight.numel() for weight in model.model.diffusion_model.parameters())
    mean = smoothed(tuned.losses)
    done = adapter.state.step if adapter.state else len(tuned.losses)
    peak = f"; {size_of(tuned.peak)} were taken at most" if tuned.peak else ""
    return "\n".join(
        (
            f"{adapter.form} of width {adapter.width} at {len(adapter.modules)} layers: {adapter.parameters:,} "
            f"parameters, {adapter.parameters / parameters:.2%} of the model's, "
            f"{adapter.parameters * 4 / 2**20:.1f} MB.",
            f"{len(tuned.losses)} steps, {done} in all; loss {mean[0]:.3f} at first, {mean[-1]:.3f} at the end.",
            f"{tuned.seconds:.2f} s a step; memory {memory}{peak}.",
        )
    )


def line_of(step: TuningStep) -> str:
    """The line on the node after a step."""
    return f"Step {step.done} of {step.steps}, loss {step.loss:.3f}"
