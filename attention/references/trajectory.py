"""Pictures on their way to noise, one latent for each noise level, and the model they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..functional.inversion import Convention


class OffLadder(ValueError):
    """A noise level at which a trajectory holds no latent."""


@dataclass(frozen=True)
class ModelStamp:
    """What must agree before a trajectory of one model is used on another."""

    family: str
    prediction: str
    """What the network predicts: `eps` or `v`."""
    weights: str
    """A digest of the network's shape and of samples of its weights, without any LoRA."""


@dataclass(frozen=True, eq=False)
class ReferenceTrajectory:
    """Pictures on their way from the clean latent to noise: one latent for each point of a ladder of noise levels."""

    latents: Tensor  # (points, images, channels, height, width) float32, as the UNet is fed, noisier with each point
    sigmas: tuple[float, ...]
    """The noise level of each point, rising."""
    steps: int
    convention: Convention
    stamp: ModelStamp
    context: Tensor  # (images or 1, text_tokens, channels) the text it was made with
    vector: Tensor | None = None  # (images or 1, channels), SDXL's size and pooled-text vector
    guidance: float = 1.0
    noises: Tensor | None = None
    """(points - 1, images, channels, height, width): of an edit-friendly inversion, the noise of each step, in the
    order of the points it leads to. The last step of a sampling, to the picture, is thus the first, and zero."""

    TOLERANCE = 1e-3
    """Relative; points of a ladder of 1000 steps lie further apart by far."""

    def __post_init__(self) -> None:
        if len(self.latents) != len(self.sigmas):
            raise ValueError(f"There are {len(self.latents)} latents for {len(self.sigmas)} noise levels.")
        if self.noises is not None and self.noises.shape != self.latents[1:].shape:
            raise ValueError(
                f"The noises have shape {tuple(self.noises.shape)}; expected {tuple(self.latents[1:].shape)}, one for "
                "each step of the trajectory."
            )
        if not all(torch.isfinite(tensor).all() for tensor in self._pictures):
            raise ValueError(
                "The trajectory holds values that are not numbers (NaN or infinite). Invert the picture again, in a "
                "higher precision if the model runs in fp16."
            )

    @property
    def images(self) -> int:
        return self.latents.shape[1]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in latent pixels."""
        height, width = self.latents.shape[-2:]
        return height, width

    @property
    def bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self._pictures)

    def at(self, sigma: float) -> Tensor:
        """The latents (images, channels, height, width) at a noise level of the ladder.

        Raises OffLadder for levels between its points.
        """
        return self.latents[self.place(sigma)]

    def select(self, images: Sequence[int]) -> ReferenceTrajectory:
        """The trajectory of some of the pictures."""
        rows = list(images)

        def chosen(tensor: Tensor) -> Tensor:
            return tensor if len(tensor) == 1 else tensor[rows]

        vector = None if self.vector is None else chosen(self.vector)
        noises = None if self.noises is None else self.noises[:, rows]
        return replace(self, latents=self.latents[:, rows], context=chosen(self.context), vector=vector, noises=noises)

    def place(self, sigma: float) -> int:
        """The number of the ladder's point at a noise level. Raises OffLadder for levels between its points."""
        place = min(range(len(self.sigmas)), key=lambda point: abs(self.sigmas[point] - sigma))
        if abs(self.sigmas[place] - sigma) > self.TOLERANCE * sigma:
            raise OffLadder(
                f"The sampler asks for noise level {sigma:.4g}, which the trajectory of {self.steps} steps does not "
                f"pass (the nearest is {self.sigmas[place]:.4g}). Connect the SIGMAS of {self._source} and a sampler "
                "that evaluates the model once a step, such as euler or ddim; with KSampler take the scheduler "
                "ddim_uniform and as many steps."
            )
        return place

    @property
    def _pictures(self) -> tuple[Tensor, ...]:
        """What is as large as the pictures."""
        return (self.latents,) if self.noises is None else (self.latents, self.noises)

    @property
    def _source(self) -> str:
        return "the StyleID node" if self.noises is None else "Invert Image (edit-friendly)"

    def __repr__(self) -> str:
        height, width = self.size
        count = f"{self.images} picture{'' if self.images == 1 else 's'} of {width}x{height}"
        ends = f"{self.sigmas[0]:.3g} to {self.sigmas[-1]:.4g}"
        return f"{count}, {self.steps} steps ({self.convention}), sigma {ends}, {self.stamp.family}"
