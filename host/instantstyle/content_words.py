"""Content words as embeddings in the space of an image encoder: projected, not normalised, by the matching tower."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...attention.functional.embeddings import mean_phrase
from .text_towers import LONGEST, embed_text


@dataclass(frozen=True)
class Phrase:
    """Content words, and the weight of their embedding."""

    words: str
    weight: float = 1.0

    def __str__(self) -> str:
        return self.words if self.weight == 1.0 else f"({self.words}:{self.weight:g})"


def parse_phrases(text: str) -> list[Phrase]:
    """One phrase per line; `(green grass:0.5)` weighs it, as in a prompt. Raises ValueError if there are none."""
    phrases: list[Phrase] = []
    for line in filter(None, (line.strip() for line in text.splitlines())):
        weighted = re.fullmatch(r"\((.+):\s*(-?\d+(?:\.\d+)?)\)", line)
        phrases.append(Phrase(weighted[1].strip(), float(weighted[2])) if weighted else Phrase(line))
    phrases = [phrase for phrase in phrases if phrase.words]
    if not phrases:
        raise ValueError("There are no content words to subtract. Write what the reference shows, e.g. a rabbit.")
    return phrases


def embed_phrases(encoder: Any, phrases: Sequence[Phrase], width: int) -> Tensor:
    """The content embedding (width,) of weighted phrases, float32 on the CPU. `encoder` is a CLIP or a TextTower.

    Raises ValueError if the encoder's embeddings are not `width` wide, its file is incomplete or a phrase is too long.
    """
    embeddings = torch.cat([_embed(encoder, phrase.words, width) for phrase in phrases])
    return mean_phrase(embeddings, [phrase.weight for phrase in phrases])


def _embed(encoder: Any, words: str, width: int) -> Tensor:
    text = embed_text(encoder, words, width)
    if not text.whole:
        raise ValueError(
            f"The content words '{words[:40]}...' are too long: CLIP reads {LONGEST - 2} tokens. "
            "Name the content briefly."
        )
    return text.embedding
