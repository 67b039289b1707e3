"""The subject masks that a run left on its LATENT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...attention.subjects.maps import SUBJECT_MASKS
from ..binding.findings import FOUND


def subject_masks_of(latent: Mapping[str, Any]) -> Tensor:
    """The subject masks of the run that sampled this LATENT: (images, height, width), 0 or 1.

    Raises ValueError for a LATENT that has none: no story was sampled, or another node made a new tensor.
    """
    found: Mapping[str, Tensor] = getattr(latent["samples"], FOUND, {})
    if SUBJECT_MASKS not in found:
        raise ValueError(
            "This LATENT carries no subject masks. Connect it from the sampler itself, with no node between, and give "
            "that sampler a model from ConsiStory whose sharing or injection is above 0, or from Apply Subject whose "
            "injection is above 0."
        )
    return found[SUBJECT_MASKS].float()
