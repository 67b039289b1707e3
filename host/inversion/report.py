"""The error of pictures that were inverted and sampled back."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...attention.references.trajectory import ReferenceTrajectory
from .runs import as_latent


def reconstruction_error(model: Any, trajectory: ReferenceTrajectory, back: Tensor) -> float:
    """Relative L2 distance between the clean latents and `back`, the LATENT that was sampled back."""
    clean = as_latent(model, trajectory.latents[0])
    return ((back.cpu() - clean).norm() / clean.norm()).item()


NOT_CHECKED = "Not checked."


def reconstruction_report(model: Any, trajectory: ReferenceTrajectory, back: Tensor, vae: Any) -> str:
    """The error of `back` in a sentence: of the latents and, with a `vae`, of the decoded pictures in decibels."""
    found = f"The latent comes back with a relative error of {reconstruction_error(model, trajectory, back):.2%}"
    if vae is None:
        return f"{found}."
    clean = as_latent(model, trajectory.latents[0])
    difference = vae.decode(back) - vae.decode(clean)
    error = difference.pow(2).mean().clamp_min(1e-12)
    return f"{found}, the picture with {(-10 * error.log10()).item():.1f} dB."
