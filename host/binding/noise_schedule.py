"""ComfyUI's noise schedule, read in both directions."""

from __future__ import annotations

import math
from typing import Any

import comfy.model_sampling
import numpy


def is_flow(model: Any) -> bool:
    """Whether a MODEL is a rectified flow as ComfyUI samples it: x = (1 - sigma) * x0 + sigma * noise."""
    sampling = model.get_model_object("model_sampling")
    others = comfy.model_sampling.IMG_TO_IMG_FLOW
    return isinstance(sampling, comfy.model_sampling.CONST) and not isinstance(sampling, others)


class NoiseSchedule:
    """Translates between sigmas and fractions of the schedule, as ComfyUI's own start and end percentages do."""

    POINTS = 129

    def __init__(self, model_sampling: Any) -> None:
        percents = numpy.linspace(0.0, 1.0, self.POINTS)
        sigmas = [float(model_sampling.percent_to_sigma(percent)) for percent in percents]
        # ComfyUI answers "more than any" and "less than any" at the two ends.
        sigmas[0], sigmas[-1] = float(model_sampling.sigma_max), float(model_sampling.sigma_min)
        self._percents = percents
        self._falling = -numpy.log(sigmas)
        self._model_sampling = model_sampling
        self._asked: dict[float, float] = {}

    def sigma_at(self, percent: float) -> float:
        """The noise level at a fraction of the schedule, to ComfyUI's last bit."""
        if percent not in self._asked:
            self._asked[percent] = float(self._model_sampling.percent_to_sigma(percent))
        return self._asked[percent]

    def progress(self, sigma: float) -> float:
        """0 at the highest noise level, 1 at the lowest and below."""
        return 1.0 if sigma <= 0 else float(numpy.interp(-math.log(sigma), self._falling, self._percents))

    def exact_progress(self, sigma: float) -> float:
        """`progress` to a hundredth of a timestep, where the table is up to two off."""
        target, near = -math.log(sigma) if sigma > 0 else math.inf, self.progress(sigma)
        if not 0.0 < near < 1.0:
            return near
        index = min(int(near * (self.POINTS - 1)), self.POINTS - 2)
        low, high = (float(self._percents[index + side]) for side in (0, 1))
        below, above = (float(self._falling[index + side]) - target for side in (0, 1))
        for _ in range(8):  # false position; the side that stays counts half (Illinois)
            if above - below < 1e-12:
                break
            near = low - below * (high - low) / (above - below)
            value = -math.log(float(self._model_sampling.percent_to_sigma(near))) - target
            if abs(value) < 1e-7:
                break
            if value < 0:
                low, below, above = near, value, above / 2
            else:
                high, above, below = near, value, below / 2
        return near
