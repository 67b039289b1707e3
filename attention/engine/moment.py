"""When: the noise level of a model call, and what is known of a run before its first step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Moment:
    """When: the noise level of this call and its place in the run."""

    sigma: float
    step: int
    """Index of the last ladder point at or above `sigma`; samplers may also evaluate between ladder points."""
    steps: int
    progress: float
    """Share of the noise schedule passed: 0 at pure noise, 1 at the clean latent."""
    sigma_at: Callable[[float], float]
    """The noise level at a share of the schedule, as the host counts shares: above any at 0, none at 1."""
    ladder: tuple[float, ...] = ()
    """The progress at every step of the run."""
    samplings_left: int = 0
    """How many times the sampler will run again after this; 0 in the sampling whose result the user gets."""


@dataclass(frozen=True)
class RunPlan:
    """What is known of a run before its first step, so that a method can refuse it."""

    sampler: str
    """The name of the sampler's function, e.g. `sample_euler`."""
    moments: tuple[Moment, ...]
    """Every point of the sampler's ladder but the last, where no model is called."""
    images: int
    size: tuple[int, int]
    """Height and width of the latent."""
    inpaints: bool
    """Whether a noise mask keeps part of the latent."""
    others: frozenset[str]
    """Nodes on the same model that change what the UNet sees or skip its calls: EasyCache, HyperTile, ToMe."""
    devices: int = 1
    """Over how many the conditionings of a call are spread."""
    guided: bool = False
    """Whether the model is sure to be asked for the negative side; guiders of other packs may not tell."""
    cropped: bool = False
    """Whether a conditioning is for a part of the picture."""
    channels: int = 4
    """What the UNet takes of each image: those of the latent, and of an inpainting model also of mask and picture."""
