"""What the user brings: pictures as the encoder saw them, and latents that ride along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .functional.embeddings import subtract_text
from .functional.inversion import Convention


@dataclass(frozen=True, eq=False)
class Guest:
    """Latents that pass through the UNet as extra rows, at the same noise level as the sampler's own."""

    name: str
    latent: Tensor  # (rows, channels, height, width), scaled as the UNet sees it
    context: Tensor  # (rows or 1, text_tokens, channels)
    vector: Tensor | None = None  # (rows or 1, channels), SDXL's size and pooled-text vector

    @property
    def rows(self) -> int:
        return self.latent.shape[0]


@dataclass(frozen=True, eq=False)
class PinnedImages:
    """The first images of the batch, where they are known: they are not sampled, whatever the sampler makes of them."""

    latents: Tensor  # (images, channels, height, width), as the UNet is fed them now
    clean: Tensor  # (images, channels, height, width), as they are to come out

    def shown_in(self, x: Tensor, chunks: int) -> Tensor:
        """The rows of a model call (chunks * images, ...) with these in place of the sampler's."""
        return self._in(torch.unflatten(x, 0, (chunks, -1)), self.latents).flatten(0, 1)

    def found_in(self, denoised: Tensor) -> Tensor:
        """What the model took the images (images, ...) for, with these as they are."""
        return self._in(denoised[None], self.clean)[0]

    def _in(self, chunks: Tensor, images: Tensor) -> Tensor:
        own = images.to(chunks).expand(len(chunks), -1, -1, -1, -1)
        return torch.cat([own, chunks[:, len(images) :]], dim=1)


@dataclass(frozen=True)
class Subtraction:
    """Words taken out of a reference, and how strongly."""

    words: str
    strength: float


@dataclass(frozen=True, eq=False)
class StyleReference:
    """Style pictures as an image encoder sees them, before an adapter's projector.

    A picture is one or more crops; a crop is one projected embedding (global adapters) or its patch states
    (plus and full adapters). All tensors are float32 on the CPU.
    """

    pictures: tuple[Tensor, ...]  # each (crops, channels) or (crops, patches, channels)
    negative: Tensor  # the same for the unconditional side: (1, channels) or (1, patches, channels)
    shares: tuple[float, ...]
    """For each picture, how many copies of it attention counts: 1 is a plain picture, 2 the same picture twice."""
    subtracted: tuple[Subtraction, ...] = ()

    def __post_init__(self) -> None:
        if len(self.shares) != len(self.pictures):
            raise ValueError(f"There are {len(self.pictures)} pictures but {len(self.shares)} weights.")

    @property
    def is_global(self) -> bool:
        """Whether a crop is one embedding of the whole picture rather than a state per patch."""
        return self.negative.ndim == 2

    @property
    def width(self) -> int:
        return self.negative.shape[-1]

    def require_global(self) -> StyleReference:
        """This reference, refused with a ValueError when it holds patch states, where words cannot be subtracted."""
        if not self.is_global:
            raise ValueError(
                "This reference was made for a plus, full-face or composition adapter, which reads patches of the "
                "picture; words can be subtracted only from one embedding of the whole. Use a base, light or vit-G "
                "adapter."
            )
        return self

    def without(self, text: Tensor, words: str, strength: float) -> StyleReference:
        """The reference with `strength` of a text embedding (channels,) taken out of every picture.

        The unconditional side stays as it is, as in the authors' code.
        """
        freed = tuple(subtract_text(picture, text, strength) for picture in self.pictures)
        return replace(self, pictures=freed, subtracted=(*self.subtracted, Subtraction(words, strength)))

    def __repr__(self) -> str:
        count = len(self.pictures)
        words = "".join(f" - {s.strength:g} x '{s.words}'" for s in self.subtracted)
        return f"{count} picture{'' if count == 1 else 's'}{words}"


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
