"""Where and what: one attention, or one block of the decoder, about to run."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from .layout import BatchLayout
from .moment import Moment

AttentionKind = Literal["self", "cross"]
BlockPart = Literal["input", "middle", "output"]


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

    @property
    def name(self) -> str:
        """By which files name this layer, e.g. `output.4.0.self`."""
        return f"{self.block}.{self.depth}.{self.kind}"

    def __str__(self) -> str:
        return f"{self.kind} {self.block}[{self.depth}]"


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
    done: frozenset[Hashable] = frozenset()
    """What patches before did that is done once, however many ask for it."""


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
    """What key and value were projected from, as in `states.py`; self-attentions alone tell."""
    project: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None
    """The model's own projection of states (..., channels) to keys and values, with whatever LoRA is on it."""
