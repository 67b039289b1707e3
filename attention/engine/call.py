"""Where and what: one attention, or one block of the decoder, about to run."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from .layout import BatchLayout
from .moment import Moment

AttentionKind = Literal["self", "cross", "joint"]
"""In a joint attention the tokens of text and picture are one sequence."""
BlockPart = Literal["input", "middle", "output", "double", "single"]
"""The blocks of a UNet; and those of a transformer, with weights for text and picture apart or the same for both."""


@dataclass(frozen=True)
class AttentionSite:
    """Where: one attention layer, e.g. the cross-attention of `output.1` in a UNet, third transformer block."""

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
    key: Tensor  # (chunks, tokens, heads * head_dim), or by head as in the call
    value: Tensor  # the same
    instead: bool = False
    """Whether they stand in the place of the image's own tokens; text is attended to as before."""
    own: tuple[Tensor, Tensor] | None = None
    """Key and value of the sampler's rows that the picture's tokens see in place of the call's, where text does not."""


@dataclass(frozen=True)
class Rotary:
    """How a transformer tells queries and keys where they stand: pairs of channels of each head are rotated.

    Each axis of position has channels of its own, in which the frequency falls from the first pair to the last.
    """

    axes: tuple[int, ...]
    """Channels of a head for each axis, such as time, height and width."""
    pairs: Literal["neighbours", "halves"] = "neighbours"
    """Whether a pair is two channels side by side, or one of each half of the head."""
    base: float = 10000.0
    """Of which the frequencies are powers."""


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """What: one attention about to run. Patches replace its fields; they never write into its tensors.

    Tokens are always the dimension before the last. UNets give heads packed, (rows, tokens, heads * head_dim), and so
    do some transformers; others give (rows, heads, tokens, head_dim). What attention gives is packed everywhere.
    """

    site: AttentionSite
    layout: BatchLayout
    moment: Moment
    height: int
    width: int
    """Of the picture, in tokens; of a video, of each frame."""
    heads: int
    query: Tensor  # (rows, height * width, heads * head_dim) in a UNet
    key: Tensor  # (rows, key_tokens, heads * head_dim)
    value: Tensor  # (rows, key_tokens, heads * head_dim)
    mask: Tensor | None = None  # additive, broadcastable to (rows, heads, query_tokens, key_tokens)
    shared: tuple[SharedTokens, ...] = ()
    """No image stands in two of them. Of a joint attention, only the tokens of the picture attend to them."""
    states: Tensor | None = None  # (rows, key_tokens, channels)
    """What key and value were projected from, as in `states.py`; self-attentions of a UNet alone tell."""
    project: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None
    """The model's own projection of states (..., channels) to keys and values, with whatever LoRA is on it."""
    image: slice = field(default_factory=lambda: slice(None))
    """Which tokens are the picture's own; the others are text, reference pictures of an editing model, or padding."""
    model_query: Tensor | None = None
    """The query as the model made it, which no patch replaces; transformers alone tell."""
    rotary: Rotary | None = None
    """How query and key were rotated already; None where the model does not rotate them."""
    rotation: Tensor | None = None  # (rows or 1, 1, tokens, head_dim / 2, 2, 2)
    """The rotation of each two neighbouring channels; None where the model rotates nothing, or does not tell."""
    apart: Mapping[Hashable, tuple[Tensor, ...]] = field(default_factory=dict[Hashable, tuple[Tensor, ...]])
    """What patches keep of their pictures that went through the model before this call; see `pictures.py`."""
    whole: AttentionCall | None = None
    """The call with the guests' rows too, of which this has the sampler's alone."""
