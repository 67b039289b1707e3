"""Who: which rows of a model call belong to which conditioning, image and guest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .unexpected import UnexpectedCall

Crop = tuple[int, int, int, int]
"""Height, width, top and left of a part of the latent, in latent pixels."""
CHANGED_BATCH = (
    "Bypass the node that changes the batch inside the model. The contexts of AnimateDiff-Evolved do, and Tiled "
    "Diffusion does unless its tile batch is 1."
)


@dataclass(frozen=True)
class Chunk:
    """One conditioning's slice of a model call."""

    role: str
    """The guider's own name for the conditioning: `positive`, `negative`, `middle`, `empty_negative_prompt`, ..."""
    crop: Crop | None = None
    """The part of the latent that this chunk shows, or None for the whole."""
    tag: str | None = None
    """The mark that a node of ours put on the conditioning, such as the text of a story."""
    text_tokens: int | None = None
    """Length of its own text. ComfyUI repeats texts up to a common length in a call; None if it is not known."""

    @property
    def conditional(self) -> bool:
        """False for the chunks that guidance pushes away from."""
        return not any(word in self.role for word in ("negative", "uncond", "empty"))


@dataclass(frozen=True)
class GuestRows:
    """Rows a patch added to the call for itself."""

    owner: object
    name: str
    rows: int


@dataclass(frozen=True)
class ImageWindow:
    """The images of a batch that the model sees in one call, where it sees the batch part by part."""

    images: tuple[int, ...]
    """Indices in the batch, in the order of the rows."""
    batch: int
    """How many images the batch has."""


@dataclass(frozen=True)
class BatchLayout:
    """Who: whose rows a model call holds. Chunks of `images` rows each come first, guest rows last.

    ComfyUI may send the conditionings together or apart, in any order, one side only, or several of one side;
    a method asks here and assumes nothing.
    """

    chunks: tuple[Chunk, ...]
    images: int
    latent_size: tuple[int, int] | None
    """Height and width of the whole latent; chunks with a crop show part of it. None if a tiling node passes crops
    without saying which."""
    guests: tuple[GuestRows, ...] = ()
    device: torch.device | None = None
    """Where the model runs."""
    tags: frozenset[str] = frozenset()
    """The tags of all conditional chunks of this step, also of those that ComfyUI sends in another call."""
    window: ImageWindow | None = None
    """Which images of the batch the rows of a chunk are; None if they are the whole batch."""

    @classmethod
    def from_numbers(
        cls,
        numbers: Sequence[int],
        rows: int,
        latent_size: tuple[int, int] | None,
        roles: Sequence[str] = ("positive", "negative"),
        crops: Sequence[Crop | None] = (),
    ) -> BatchLayout:
        """Reads ComfyUI's `cond_or_uncond`: for each chunk its index in the guider's list of conditionings.

        An index is not a role (DualCFGGuider puts the negative first), hence `roles`, the guider's names in
        the order of its list. Without a guider, ComfyUI's usual order is assumed.
        """
        if not numbers or rows % len(numbers):
            raise UnexpectedCall(
                f"The model was called with {rows} rows for {len(numbers)} conditionings, which do not divide evenly.",
                CHANGED_BATCH,
            )
        named = [roles[number] if number < len(roles) else f"conditioning {number}" for number in numbers]
        shown = crops or [None] * len(numbers)
        chunks = tuple(Chunk(role, crop) for role, crop in zip(named, shown, strict=True))
        return cls(chunks, rows // len(numbers), latent_size)

    @property
    def image_indices(self) -> tuple[int, ...]:
        """For each row of a chunk, which image of the batch it is."""
        return tuple(range(self.images)) if self.window is None else self.window.images

    @property
    def batch_images(self) -> int:
        """Images of the whole batch."""
        return self.images if self.window is None else self.window.batch

    @property
    def host_rows(self) -> int:
        """Rows the sampler asked for: every chunk's, without the guests."""
        return len(self.chunks) * self.images

    @property
    def rows(self) -> int:
        return self.host_rows + sum(guest.rows for guest in self.guests)

    @property
    def conditional(self) -> tuple[bool, ...]:
        """For each chunk, whether it is conditional."""
        return tuple(chunk.conditional for chunk in self.chunks)

    def chunk_rows(self, number: int) -> slice:
        """The rows of one chunk, an image each."""
        return slice(number * self.images, (number + 1) * self.images)

    @property
    def conditional_rows(self) -> tuple[slice, ...]:
        """The rows of every conditional chunk."""
        return tuple(self.chunk_rows(number) for number, chunk in enumerate(self.chunks) if chunk.conditional)

    def tagged_rows(self, tag: str) -> tuple[slice, ...]:
        """The rows of every conditional chunk with `tag`; of all conditional chunks if none in this step has it.

        Conditioning (Combine) adds prompts without the tag, whose words stand at other tokens.
        """
        return tuple(self.chunk_rows(number) for number in self.tagged_chunks(tag))

    def tagged_chunks(self, tag: str) -> tuple[int, ...]:
        """The numbers of the chunks that `tagged_rows` gives the rows of."""
        known = tag in self.tags
        chunks = enumerate(self.chunks)
        return tuple(number for number, c in chunks if c.conditional and (not known or c.tag == tag))

    def guest_rows(self, owner: object, name: str) -> slice:
        """The rows that hold `owner`'s guest called `name`."""
        first = self.host_rows
        for guest in self.guests:
            if guest.owner is owner and guest.name == name:
                return slice(first, first + guest.rows)
            first += guest.rows
        raise KeyError(f"No guest called {name} rides in this call.")
