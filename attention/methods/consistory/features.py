"""The features that tell which patches of two images show the same part (DIFT, arXiv:2306.03881)."""

from __future__ import annotations

import math

from ...engine.bank import FeatureBank
from ...engine.call import BlockCall
from ...engine.moment import Moment

FEATURES_SIGMA = 0.7246786
"""The noise level of DIFT's timestep 261 in SD's own schedule."""


def features_step(moment: Moment) -> int:
    """The step of the run nearest to the noise level at which features match best."""

    def distance(step: int) -> float:
        sigma = moment.sigmas[step]
        return abs(math.log(sigma / FEATURES_SIGMA)) if sigma > 0 else math.inf

    return min(range(len(moment.sigmas[:-1])), key=distance, default=0)


def record_features(call: BlockCall, tag: str, bank: FeatureBank) -> None:
    """Adds what enters a block to the features (images, channels, height, width) of a story's rows, float32.

    They are summed over conditionings, so that it does not matter in which order ComfyUI sends them.
    """
    for rows in call.layout.tagged_rows(tag):
        features = call.hidden[rows].float()
        known = "features" in bank
        bank.remember("features", bank.recall("features") + features if known else features.clone())
