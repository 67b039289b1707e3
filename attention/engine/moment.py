"""When: the noise level of a model call, and what is known of a run before its first step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Moment:
    """When: the noise level of this call and its step in the run."""

    sigma: float
    step: int
    """Index of the last noise level of the run at or above `sigma`; samplers may also evaluate between two."""
    steps: int
    progress: float
    """Fraction of the noise schedule passed: 0 at pure noise, 1 at the clean latent."""
    sigma_at: Callable[[float], float]
    """Sigma at a fraction of the schedule, by ComfyUI's `percent_to_sigma`: larger than any at 0, zero at 1."""
    ladder: tuple[float, ...] = ()
    """The progress at every step of the run."""
    pass_number: int = 1
    """Which run of the sampler this is, from 1."""
    passes: int = 1
    """How often the sampler runs from the same noise. The user gets the result of the last pass."""

    @property
    def is_last_pass(self) -> bool:
        return self.pass_number == self.passes


@dataclass(frozen=True)
class RunPlan:
    """What is known of a run before its first step, so that a method can refuse it."""

    sampler: str
    """The name of the sampler's function, e.g. `sample_euler`."""
    moments: tuple[Moment, ...]
    """Every noise level of the run but the last, where no model is called."""
    images: int
    size: tuple[int, int]
    """Height and width of the latent."""
    inpaints: bool
    """Whether a noise mask keeps part of the latent."""
    conflicts: frozenset[str]
    """Nodes on the model that change the UNet's tokens or skip its calls: HyperTile, ToMe, EasyCache, LazyCache."""
    device_count: int = 1
    """Over how many devices the conditionings of a call are spread."""
    guided: bool = False
    """Whether the model is sure to be asked for the negative side; guiders of other packs may not tell."""
    cropped: bool = False
    """Whether a conditioning is for a part of the picture."""
    channels: int = 4
    """Input channels of the UNet: those of the latent, and of an inpainting model also of mask and picture."""
    adds_noise: bool = False
    """Whether the sampler adds noise to the latent that it is given."""
    empty: bool = False
    """Whether the latent is empty, so that the run makes its images from noise alone."""
    cfg: float | None = None
    """The CFG of ComfyUI's own guiders; None where a guider combines its sides in a way of its own."""
    end: float = 0.0
    """The last noise level (sigma), where no model is called."""
    passes: int = 1
    """How often the sampler runs; 1 while the patches are still being asked."""

    @property
    def start(self) -> float:
        """The noise level (sigma) that the run starts from."""
        return self.moments[0].sigma if self.moments else self.end
