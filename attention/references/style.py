"""Style pictures, encoded by an image encoder."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from ..functional.embeddings import subtract_text


@dataclass(frozen=True)
class Subtraction:
    """Content words subtracted from a reference, and the strength."""

    words: str
    strength: float


@dataclass(frozen=True, eq=False)
class StyleReference:
    """Style pictures after an image encoder and before an adapter's projector.

    A picture has one or more crops. A crop is one projected embedding (global adapters) or its patch states (plus and
    full adapters). All tensors are float32 on the CPU.
    """

    pictures: tuple[Tensor, ...]  # each (crops, channels) or (crops, patches, channels)
    negative: Tensor  # the same for the unconditional side: (1, channels) or (1, patches, channels)
    weights: tuple[float, ...]
    """By picture: the number of copies that attention counts. 1 is the plain picture, 2 the same picture twice."""
    subtracted: tuple[Subtraction, ...] = ()

    def __post_init__(self) -> None:
        if len(self.weights) != len(self.pictures):
            raise ValueError(f"There are {len(self.pictures)} pictures but {len(self.weights)} weights.")

    @property
    def is_global(self) -> bool:
        """Whether a crop is one embedding of the whole picture, and not one state for each patch."""
        return self.negative.ndim == 2

    @property
    def width(self) -> int:
        """Channels of an embedding or a patch state."""
        return self.negative.shape[-1]

    def check_global(self) -> StyleReference:
        """This reference. Raises ValueError if it holds patch states, from which words cannot be subtracted."""
        if not self.is_global:
            raise ValueError(
                "This reference was made for a plus, full-face or composition adapter, which reads patches of the "
                "picture; words can be subtracted only from one embedding of the whole. Use a base, light or vit-G "
                "adapter."
            )
        return self

    def without(self, text: Tensor, words: str, strength: float) -> StyleReference:
        """The reference with `strength` times a text embedding (channels,) subtracted from every picture.

        The unconditional side is unchanged, as in the authors' code.
        """
        freed = tuple(subtract_text(picture, text, strength) for picture in self.pictures)
        return replace(self, pictures=freed, subtracted=(*self.subtracted, Subtraction(words, strength)))

    def __repr__(self) -> str:
        count = len(self.pictures)
        words = "".join(f" - {s.strength:g} x '{s.words}'" for s in self.subtracted)
        return f"{count} picture{'' if count == 1 else 's'}{words}"
