"""Where, who, when and what of one attention: the values a method reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

AttentionKind = Literal["self", "cross"]
BlockPart = Literal["input", "middle", "output"]

Area = tuple[int, int, int, int]
"""Height, width, top and left of a crop of the latent, in latent pixels."""


@dataclass(frozen=True)
class AttentionSite:
    """Where: one attention layer of the UNet, e.g. the cross-attention of `output.1`, third transformer block."""

    kind: AttentionKind
    part: BlockPart
    number: int
    depth: int = 0

    @property
    def block(self) -> str:
        """The name users write for the block that holds this layer, e.g. `output.1`."""
        return f"{self.part}.{self.number}"

    def __str__(self) -> str:
        return f"{self.kind} {self.block}[{self.depth}]"


@dataclass(frozen=True)
class StoryBlocks:
    """Where ConsiStory looks for a subject, shares it, and copies its features."""

    words: tuple[str, ...]
    """Blocks whose attention to the subject's words makes its mask; all of one resolution."""
    shared: tuple[str, ...]
    """Blocks in whose self-attention images see each other's subjects."""
    injected: tuple[str, ...]
    """Blocks after whose self-attention features are copied from image to image; all of one resolution."""
    features: str
    """The block whose input tells which patches of two images match."""
    levels: int
    """Resolutions of the UNet, each half of the one before."""
    source: str

    def grid(self, block: str, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of a block's tokens on a latent of `size`."""
        part, number = block.split(".")
        level = {
            "input": int(number) // 3,
            "middle": self.levels - 1,
            "output": self.levels - 1 - int(number) // 3,
        }[part]
        height, width = (-(-side // 2**level) for side in size)
        return height, width


@dataclass(frozen=True)
class Chunk:
    """One conditioning's slice of a model call."""

    role: str
    """The guider's own name for the conditioning: `positive`, `negative`, `middle`, `empty_negative_prompt`, ..."""
    area: Area | None = None
    """The crop of the latent this chunk sees, or None for the whole of it."""
    story: str | None = None
    """The text of the story that it tells, where the conditioning says so."""

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
class BatchLayout:
    """Who: whose rows a model call holds. Chunks of `images` rows each come first, guest rows last.

    ComfyUI may send the conditionings together or apart, in any order, one side only, or several of one side;
    a method asks here and assumes nothing.
    """

    chunks: tuple[Chunk, ...]
    images: int
    latent: tuple[int, int] | None
    """Height and width of the whole latent, of which a chunk with an area sees a crop; None where the model is shown
    a part of it and nobody tells which."""
    guests: tuple[GuestRows, ...] = ()
    device: torch.device | None = None
    """Where the model runs."""
    stories: frozenset[str] = frozenset()
    """The stories that are told in this call or in others beside it."""

    @classmethod
    def from_numbers(
        cls,
        numbers: Sequence[int],
        rows: int,
        latent: tuple[int, int] | None,
        roles: Sequence[str] = ("positive", "negative"),
        areas: Sequence[Area | None] = (),
    ) -> BatchLayout:
        """Reads ComfyUI's `cond_or_uncond`: for each chunk its place in the guider's list of conditionings.

        The places are not roles (DualCFGGuider puts the negative first), hence `roles`, the guider's names in
        the order of its list; without a guider, ComfyUI's usual order is assumed.
        """
        if not numbers or rows % len(numbers):
            raise ValueError(
                f"The model was called with {rows} rows for {len(numbers)} conditionings, which do not divide evenly. "
                "A node before this one changes the batch inside the model; bypass it to use Semblance."
            )
        named = [roles[number] if number < len(roles) else f"conditioning {number}" for number in numbers]
        crops = areas or [None] * len(numbers)
        chunks = tuple(Chunk(role, area) for role, area in zip(named, crops, strict=True))
        return cls(chunks, rows // len(numbers), latent)

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

    def story_rows(self, story: str) -> tuple[slice, ...]:
        """The rows of every conditional chunk that tells a story; of all that are conditional where none says so.

        Conditioning (Combine) adds other prompts to a story's, whose words stand elsewhere.
        """
        if story not in self.stories:
            return self.conditional_rows
        return tuple(
            self.chunk_rows(number)
            for number, chunk in enumerate(self.chunks)
            if chunk.conditional and chunk.story == story
        )

    def guest_rows(self, owner: object, name: str) -> slice:
        """The rows that hold `owner`'s guest called `name`."""
        first = self.host_rows
        for guest in self.guests:
            if guest.owner is owner and guest.name == name:
                return slice(first, first + guest.rows)
            first += guest.rows
        raise KeyError(f"No guest called {name} rides in this call.")


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


@dataclass(frozen=True, eq=False)
class BlockCall:
    """One block of the decoder about to run: what enters it from below, and over its skip connection."""

    block: str
    """Its name, e.g. `output.3`."""
    layout: BatchLayout
    moment: Moment
    hidden: Tensor  # (rows, channels, height, width)
    skip: Tensor  # (rows, channels, height, width)
    rehearsal: bool = False
    """Whether the UNet will run once more on the same latents."""


@dataclass(frozen=True, eq=False)
class SharedTokens:
    """Keys and values of elsewhere that some images attend to besides their own."""

    images: tuple[int, ...]
    """Which images of each chunk."""
    key: Tensor  # (chunks, tokens, heads * head_dim)
    value: Tensor  # (chunks, tokens, heads * head_dim)


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """What: one attention about to run. Patches replace its fields; they never write into its tensors."""

    site: AttentionSite
    layout: BatchLayout
    moment: Moment
    height: int
    width: int
    heads: int
    query: Tensor  # (rows, height * width, heads * head_dim)
    key: Tensor  # (rows, key_tokens, heads * head_dim)
    value: Tensor  # (rows, key_tokens, heads * head_dim)
    mask: Tensor | None = None  # additive, broadcastable to (rows, heads, query_tokens, key_tokens)
    shared: tuple[SharedTokens, ...] = ()
    """No image stands in two of them."""
    states: Tensor | None = None  # (rows, key_tokens, channels)
    """What key and value were projected from; self-attentions alone tell."""
    project: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None
    """The model's own projection of states (..., channels) to keys and values, with whatever LoRA is on it."""
