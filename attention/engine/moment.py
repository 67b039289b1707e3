"""When: the noise level of a model call, and what is known of a run before its first step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

LAST_TIMESTEP = 999
"""Of the 1000 that SD was trained on; ComfyUI spreads the progress of every model over as many."""
ROUNDING = 0.05
"""How far from a whole number a number of steps may lie and still count as whole."""


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
    """The progress at every noise level of the run, the last one included."""
    sigmas: tuple[float, ...] = ()
    """Every noise level of the run, the last one included."""
    pass_number: int = 1
    """Which run of the sampler this is, from 1."""
    passes: int = 1
    """How often the sampler runs from the same noise. The user gets the result of the last pass."""
    continued: bool = False
    """Whether the run goes on where another ended, with what that one found."""
    extra: bool = False
    """Whether the call looks again at what this step has seen, for a node that guides by a perturbed model."""

    @property
    def is_last_pass(self) -> bool:
        return self.pass_number == self.passes

    @property
    def span(self) -> tuple[float, float]:
        """The part of a plain run that this step stands for, as fractions of its steps.

        In N evenly spaced timesteps, as DDIM takes them, step i stands for i / N to (i + 1) / N. In any other run it
        stands for the noise from its own level up by as much as lies between it and the next.
        """
        end, following = self._fraction(self.step), self.ladder[self.step + 1 : self.step + 2]
        if following and following[0] < 1.0:
            width = self._fraction(self.step + 1) - end
        else:  # a last step goes down to the lowest level, however near that is
            width = end - self._fraction(self.step - 1) if self.step else end
        return end - abs(width), end

    @property
    def number(self) -> float:
        """How many steps of this one's width come before it in a plain run: in N evenly spaced ones, step i itself."""
        begin, end = self.span
        number = begin / (end - begin) if end > begin else 0.0
        return float(round(number)) if abs(number - round(number)) < ROUNDING else number

    def _fraction(self, step: int) -> float:
        """The fraction of all timesteps down to a step's, its own included."""
        return (LAST_TIMESTEP * self.ladder[step] + 2) / (LAST_TIMESTEP + 1)


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
    """Nodes that change the UNet's tokens, skip its calls or add some: HyperTile, ToMe, EasyCache, LazyCache, and the
    reference control of Advanced-ControlNet."""
    device_count: int = 1
    """Over how many devices the conditionings of a call are spread."""
    guided: bool = False
    """Whether the model is sure to be asked for the negative side; guiders of other packs may not tell."""
    cropped: bool = False
    """Whether a conditioning is for a part of the picture."""
    channels: int = 4
    """Input channels of the UNet: those of the latent, and of an inpainting model also of mask and picture."""
    latent_channels: int | None = None
    """Channels of the latent."""
    pictures_apart: bool = False
    """Whether pictures of patches cannot ride beside the sampler's rows, whatever their size."""
    adds_noise: bool = False
    """Whether the sampler adds noise to the latent that it is given."""
    takes_state: bool = False
    """Whether the sampler can begin from the noisy end of an inversion, on flow models too."""
    empty: bool = False
    """Whether the latent is empty, so that the run makes its images from noise alone."""
    cfg: float | None = None
    """The CFG of ComfyUI's own guiders; None where a guider combines its sides in a way of its own."""
    end: float = 0.0
    """The last noise level (sigma), where no model is called."""
    passes: int = 1
    """How often the sampler runs; 1 while the patches are still being asked."""
    tags: frozenset[str] = frozenset()
    """The tags of the conditionings that are not guided away from, such as the text of a story."""
    window: int | None = None
    """How many images the model sees at once, if it sees the batch in windows that pass over it."""
    between: tuple[Moment, ...] = ()
    """Noise levels between those of the run at which the sampler calls the model too, as far as it tells."""
    frames: int = 1
    """Frames of a latent of video; 1 of a picture."""
    text_width: int | None = None
    """Channels of the texts of the run, as their encoder gives them; None where there is no text."""
    rotated: bool = False
    """Whether the model rotates queries and keys by where their tokens stand."""
    untold_window: int | None = None
    """The same for windows of another pack, which do not tell which images they show."""

    @property
    def looked_at(self) -> tuple[Moment, ...]:
        """Every noise level at which the model is called, as far as the sampler tells."""
        return self.moments + self.between

    @property
    def start(self) -> float:
        """The noise level (sigma) that the run starts from."""
        return self.moments[0].sigma if self.moments else self.end
