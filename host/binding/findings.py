"""What a run found out beside its latent: it is attached to that latent, goes with it, and lasts as long."""

from __future__ import annotations

from collections.abc import Mapping

import comfy.model_management
from torch import Tensor

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


def findings_of(samples: Tensor) -> Mapping[str, Tensor]:
    """What was found beside these latents; nothing where another node has made them anew."""
    return getattr(samples, FOUND, {})
