"""Inverted pictures: their latents at each noise level, and the model they were inverted with."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..functional.inversion import MIDPOINT, Convention
from .weight_samples import WeightSamples


class OffLadder(ValueError):
    """A noise level for which a trajectory has no latent."""


@dataclass(frozen=True)
class ModelStamp:
    """What identifies a model. It must agree before a trajectory or a recorded subject is used."""

    family: str
    prediction: str
    """What the network predicts. Trajectories have `eps`, `v` or `flow`, subjects the names of ComfyUI's classes."""
    weights: str
    """The text of `WeightSamples`, without any LoRA. Files of version 0.1 have a digest."""

    @classmethod
    def read(cls, described: Mapping[str, Any]) -> ModelStamp:
        """From what JSON made of it. Raises TypeError or ValueError where that is not it."""
        stamp = cls(**described)
        for entry in (stamp.family, stamp.prediction, stamp.weights):
            if not isinstance(entry, str):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TypeError(f"its model is described by {entry!r}")
        WeightSamples.read(stamp.weights)
        return stamp


@dataclass(frozen=True, eq=False)
class ShownText:
    """A text as the network receives it."""

    context: Tensor  # (images or 1, text_tokens, channels)
    vector: Tensor | None = None  # (images or 1, channels), of SDXL with size, of Flux the pooled text
    guidance: float | None = None
    """The guidance that some networks read with the text, such as Flux dev; None for others."""


@dataclass(frozen=True, eq=False)
class ReferenceTrajectory:
    """Pictures inverted from the clean latent to noise: one latent for each point of a rising ladder of levels."""

    latents: Tensor  # (points, images, channels, height, width) float32, scaled as the network's inputs
    sigmas: tuple[float, ...]
    """The noise level (sigma) of each point, rising."""
    steps: int
    convention: Convention
    stamp: ModelStamp
    context: Tensor  # (images or 1, text_tokens, channels) the text of the inversion
    vector: Tensor | None = None  # (images or 1, channels), SDXL's size and pooled-text vector
    guidance: float = 1.0
    """The CFG of the inversion."""
    embedded_guidance: float | None = None
    """The guidance of its `ShownText`; None also where a file of an earlier version does not hold it."""
    noises: Tensor | None = None
    """Of an edit-friendly inversion, the noise of each step (points - 1, images, channels, height, width).

    The noise with index i leads to point i. Index 0, the last step of a sampling, is zero.
    """

    TOLERANCE = 1e-3
    """Relative tolerance of `at`. The points of a ladder of 1000 steps lie much further apart."""

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
    def text(self) -> ShownText:
        """The text of the inversion."""
        return ShownText(self.context, self.vector, self.embedded_guidance)

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
        """The latents (images, channels, height, width) at a noise level. Raises OffLadder like `index`.

        The path of a flow model is nearly straight, so between two of its points it is the line between them. The
        midpoint rule looks near that line.
        """
        if self.convention != MIDPOINT or not self.sigmas[0] < sigma < self.sigmas[-1]:
            return self.latents[self.index(sigma)]
        above = bisect_left(self.sigmas, sigma)
        low, high = self.sigmas[above - 1], self.sigmas[above]
        return torch.lerp(self.latents[above - 1], self.latents[above], (sigma - low) / (high - low))

    def select(self, images: Sequence[int]) -> ReferenceTrajectory:
        """The trajectory of the pictures with these indices."""
        rows = list(images)

        def chosen(tensor: Tensor) -> Tensor:
            return tensor if len(tensor) == 1 else tensor[rows]

        vector = None if self.vector is None else chosen(self.vector)
        noises = None if self.noises is None else self.noises[:, rows]
        return replace(self, latents=self.latents[:, rows], context=chosen(self.context), vector=vector, noises=noises)

    def check_channels(self, channels: int) -> None:
        """Raises ValueError for a model whose UNet takes another number of channels."""
        if channels != self.latents.shape[2]:
            raise ValueError(
                f"The model takes {channels} channels where the inverted pictures have {self.latents.shape[2]}: it is "
                "an inpainting model, to which they cannot be shown. Load an ordinary checkpoint."
            )

    def passes(self, sigma: float) -> bool:
        """Whether one of the points lies at a noise level."""
        return self._is_at(self._nearest(sigma), sigma)

    def ends_at(self, sigma: float) -> bool:
        """Whether its noisy end, from which a picture is sampled again, lies at a noise level."""
        return math.isclose(sigma, self.sigmas[-1], rel_tol=self.TOLERANCE)

    def index(self, sigma: float, remedy: str = "") -> int:
        """The index of the point at a noise level. Raises OffLadder, with a `remedy`, if it lies between the points."""
        nearest = self._nearest(sigma)
        if not self._is_at(nearest, sigma):
            raise OffLadder(
                f"The sampler asks for noise level {sigma:.4g}, which the trajectory of {self.steps} steps does not "
                f"pass (the nearest is {self.sigmas[nearest]:.4g}). {remedy or self._remedy}"
            )
        return nearest

    def _nearest(self, sigma: float) -> int:
        return min(range(len(self.sigmas)), key=lambda point: abs(self.sigmas[point] - sigma))

    def _is_at(self, point: int, sigma: float) -> bool:
        return abs(self.sigmas[point] - sigma) <= self.TOLERANCE * sigma

    @property
    def _pictures(self) -> tuple[Tensor, ...]:
        """The large tensors: all states, and the noises if there are any."""
        return (self.latents,) if self.noises is None else (self.latents, self.noises)

    @property
    def _remedy(self) -> str:
        if self.convention == MIDPOINT:
            return "Connect the SIGMAS of the StyleID node."
        source = "the StyleID node" if self.noises is None else "Invert Image (edit-friendly)"
        return (
            f"Connect the SIGMAS of {source} and a sampler that evaluates the model once a step, such as euler or "
            "ddim; with KSampler take the scheduler ddim_uniform and as many steps."
        )

    def __repr__(self) -> str:
        height, width = self.size
        count = f"{self.images} picture{'' if self.images == 1 else 's'} of {width}x{height}"
        ends = f"{self.sigmas[0]:.3g} to {self.sigmas[-1]:.4g}"
        return f"{count}, {self.steps} steps ({self.convention}), sigma {ends}, {self.stamp.family}"


def latent_pixels(size: tuple[int, int]) -> str:
    """Height and width of latents for a message; how many pixels of the picture each stands for differs by VAE."""
    return f"{size[1]}x{size[0]} latent pixels"
