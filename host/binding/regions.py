"""Regional prompts inside attention: other packs repeat rows for each region before a cross-attention, and fold them.

Attention couples do so: the rows of a prompt are repeated in place, once for each region, and each copy reads a text of
its own. The picture in the rows is the same, so whatever we know of a chunk holds for its copies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from ...attention.engine.layout import BatchLayout
from ...attention.engine.unexpected import UnexpectedCall

NOTE = "cond_or_uncond"
"""Part of the names under which these packs note the order of the rows; some write into ComfyUI's own list."""
NOT_REPEATED = 1
"""ComfyUI's number of the negative side, which is how these packs know it."""


@dataclass
class Regions:
    """Whose the rows of a cross-attention are, where there are more of them than the model was called with."""

    numbers: tuple[int, ...]
    """ComfyUI's number of each chunk's side, as it was before any pack wrote into the list."""
    context: Tensor | None = None  # (rows, text_tokens, channels)
    """The texts that the model was called with."""
    _found: dict[Any, BatchLayout] = field(default_factory=dict)

    def layout_of(
        self, layout: BatchLayout, rows: int, extra: Mapping[str, Any], texts: Tensor | None
    ) -> BatchLayout | None:
        """The layout of a cross-attention with `rows` rows besides the guests'; None if nothing tells whose they are.

        `texts` (rows, text_tokens, channels) are what it reads now. A copy that reads another text than its chunk's
        loses the chunk's tag.
        """
        counts = self._copies(rows // layout.images, extra) if rows % layout.images == 0 else None
        if counts is None:
            return None
        name = counts, None if texts is None else texts.shape[1]
        if name not in self._found:
            self._found[name] = self._repeated(layout, counts, texts)
        return self._found[name]

    def _copies(self, chunks: int, extra: Mapping[str, Any]) -> tuple[int, ...] | None:
        """How often each chunk is there: by what a pack noted; without a note the positive ones, equally often."""
        noted = [note for name, note in extra.items() if NOTE in str(name) and isinstance(note, list)]
        for note in noted:
            if len(note) == chunks and (counts := _matched(self.numbers, note)) is not None:
                return counts
        repeated = sum(number != NOT_REPEATED for number in self.numbers) or len(self.numbers)
        each, rest = divmod(chunks - len(self.numbers) + repeated, repeated)
        if rest or each < 1:
            return None
        once = repeated < len(self.numbers)
        return tuple(1 if once and number == NOT_REPEATED else each for number in self.numbers)

    def _repeated(self, layout: BatchLayout, counts: Sequence[int], texts: Tensor | None) -> BatchLayout:
        owners = [index for index, count in enumerate(counts) for _ in range(count)]
        chunks = [layout.chunks[index] for index in owners]
        if layout.tags and texts is not None and self.context is not None:
            same = self._same_texts(layout, owners, self.context, texts)
            chunks = [c if own else replace(c, tag=None) for c, own in zip(chunks, same, strict=True)]
            missing = {chunk.tag for chunk in layout.chunks} - {chunk.tag for chunk in chunks}
            if missing:
                raise UnexpectedCall(
                    "Regional prompts put other texts in the place of the story's, so the subject's words cannot be "
                    "found.",
                    "Give the regions by Conditioning (Set Mask) and Conditioning (Combine) instead.",
                )
        return replace(layout, chunks=tuple(chunks))

    def _same_texts(self, layout: BatchLayout, owners: Sequence[int], given: Tensor, read: Tensor) -> list[bool]:
        """For each copy whether it reads the text of its chunk. Reads one tensor back, once a call of the model."""
        copies = read.shape[1] // given.shape[1]
        if copies * given.shape[1] != read.shape[1]:
            return [False] * len(owners)
        own = [given[layout.chunk_rows(index)].repeat(1, copies, 1) for index in owners]
        now = read[: len(owners) * layout.images].split(layout.images)
        return torch.stack([(one == other).all() for one, other in zip(own, now, strict=True)]).tolist()


def _matched(numbers: Sequence[int], note: Sequence[Any]) -> tuple[int, ...] | None:
    """How often each chunk stands in a note of the sides' numbers; None if the note cannot be of these chunks."""
    runs, noted = (_runs([number == NOT_REPEATED for number in each]) for each in (numbers, note))
    if [side for side, _ in runs] != [side for side, _ in noted]:
        return None
    counts: list[int] = []
    for (_, chunks), (_, rows) in zip(runs, noted, strict=True):
        if rows % chunks:
            return None
        counts += [rows // chunks] * chunks
    return tuple(counts)


def _runs(sides: Sequence[bool]) -> list[tuple[bool, int]]:
    return [(side, len(list(run))) for side, run in groupby(sides)]
