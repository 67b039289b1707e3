"""ComfyUI's noise schedule, read in both directions."""

from __future__ import annotations

import math
from typing import Any

import numpy


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
