"""What a run found out beside its latent: it is attached to that latent, goes with it, and lasts as long."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.model_management
from torch import Tensor

from ..subjects import SUBJECT_MASKS
from .carried import KEY

FOUND = f"{KEY}_found"


def with_findings(samples: Tensor, findings: Mapping[str, Tensor]) -> Tensor:
    """`samples` with what was found beside it; itself where nothing was."""
    if not findings:
        return samples
    # To where the sampler nodes take it next: a copy made there would leave the findings behind.
    device, dtype = comfy.model_management.intermediate_device(), comfy.model_management.intermediate_dtype()
    samples = samples.to(device=device, dtype=dtype)
    setattr(samples, FOUND, dict(findings))
    return samples


def subject_masks_of(latent: Mapping[str, Any]) -> Tensor:
    """Where the subjects stand by the run that sampled this LATENT: (images, height, width), 0 or 1.

    Raises ValueError for a LATENT that no story was sampled to, or that another node has made anew.
    """
    found: Mapping[str, Tensor] = getattr(latent["samples"], FOUND, {})
    if SUBJECT_MASKS not in found:
        raise ValueError(
            "This LATENT carries no subject masks. Connect it from the sampler itself, with no node between, and give "
            "that sampler a model from ConsiStory whose sharing or injection is above 0."
        )
    return found[SUBJECT_MASKS].float()
