"""Maps of the attention to the subjects' words, and the masks made of them."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor

from ..engine.bank import FeatureBank
from ..engine.call import AttentionCall
from ..engine.unexpected import UnexpectedCall
from ..functional.word_maps import attention_to_words, resized, subject_mask, word_columns
from .words import SubjectWords

REMEMBERED_STEPS = 20
"""How many of the last steps a mask is made of."""
SUBJECT_MASKS = "subject masks"
"""The name of the masks among a run's findings: bool (images, height, width)."""
Grid = tuple[int, int]
"""Height and width of an attention layer's tokens."""


class SubjectMaps:
    """The maps of one pass, kept in the bank: for each step the sum over layers, and the number of layers."""

    def __init__(self, words: SubjectWords, bank: FeatureBank, pass_number: int) -> None:
        self._words, self._bank, self._pass_number = words, bank, pass_number

    def record(self, call: AttentionCall) -> None:
        """Adds the attention to the subjects' words in the story's rows of one cross-attention."""
        for number in call.layout.tagged_chunks(self._words.text):
            rows, chunk = call.layout.chunk_rows(number), call.layout.chunks[number]
            weights = self._word_weights(call.key, chunk.text_tokens or self._words.tokens)
            maps = attention_to_words(call.query[rows], call.key[rows], call.heads, weights)
            self._add(call.moment.step, torch.unflatten(maps, 2, (call.height, call.width)))

    def mask(self, step: int, grid: Grid) -> Tensor | None:
        """The subjects' mask before `step`, by the last REMEMBERED_STEPS seen: bool (images, tokens); None without any.

        For a pass that ended long before `step`, these are its last steps.
        """
        sums, layers = self.last(step)
        return None if sums is None else subject_mask(sums.sum(dim=0) / layers.sum(), *grid)

    def last(self, step: int) -> tuple[Tensor | None, Tensor]:
        """Sums of the last REMEMBERED_STEPS before `step`, (steps, images, subjects, height, width), and their layers.

        A node that resizes the features inside the UNet gives maps of several sizes: all are brought to the largest.
        """
        steps = sorted({before for _, before, _ in self._kept() if before < step})[-REMEMBERED_STEPS:]
        kept = {(before, grid): name for name, before, grid in self._kept() if before in steps}
        largest = max((grid for _, grid in kept), default=(0, 0))
        sums: dict[int, Tensor] = {}
        layers = dict.fromkeys(steps, torch.zeros(()))
        for (before, grid), name in kept.items():
            maps = resized(self._bank.recall(name), largest)
            sums[before] = sums[before] + maps if before in sums else maps
            layers[before] = layers[before] + self._bank.recall(self._name("layers", before, grid))
        if not steps:
            return None, torch.zeros(0)
        return torch.stack([sums[before] for before in steps]), torch.stack([layers[before] for before in steps])

    def forget_before(self, step: int) -> None:
        """Drops the maps that no mask from `step` on looks at."""
        for what in ("sum", "layers"):
            self._bank.forget_all(f"map {what}", self._pass_number, step - REMEMBERED_STEPS - 1)

    def continue_from(self, sums: Tensor, layers: Tensor) -> None:
        """Takes what `last` gave at the end of an earlier run as the steps before the first of this one."""
        for index, (maps, count) in enumerate(zip(sums, layers, strict=True)):
            step, grid = index - len(sums), (maps.shape[-2], maps.shape[-1])
            self._bank.remember(self._name("sum", step, grid), maps)
            self._bank.remember(self._name("layers", step, grid), count)

    def _add(self, step: int, maps: Tensor) -> None:
        grid = (maps.shape[-2], maps.shape[-1])
        for what, value in (("sum", maps), ("layers", torch.ones(()))):
            name = self._name(what, step, grid)
            self._bank.remember(name, self._bank.recall(name) + value if name in self._bank else value)

    def _kept(self) -> list[tuple[Hashable, int, Grid]]:
        """The names of all sums of this pass, with their steps and grids."""
        return [
            (name, name[2], name[3])
            for name in self._bank
            if isinstance(name, tuple) and name[:2] == ("map sum", self._pass_number)
        ]

    def _word_weights(self, key: Tensor, length: int) -> Tensor:
        """The weights of the subjects' words, repeated for each copy of a text of `length` tokens.

        A text that is longer than the story's has been joined to it, and names no subject.
        """
        tokens = key.shape[1]
        if length < self._words.tokens or tokens % length:
            raise UnexpectedCall(
                f"The model reads texts of {min(tokens, length)} tokens where Story Prompts encoded "
                f"{self._words.tokens}, so the subject's words cannot be found.",
                "Connect the CONDITIONING of Story Prompts to the sampler, and bypass the node that changes the text "
                "inside the model, as NegPip does.",
            )

        def repeated() -> Tensor:
            columns = word_columns(self._words.columns, length)
            return columns.repeat(1, tokens // length, 1).to(key.device)

        return self._bank.once(("word columns", tokens, length, key.device), repeated)

    def _name(self, what: str, step: int, grid: Grid) -> Hashable:
        return f"map {what}", self._pass_number, step, grid


def grid_of(call: AttentionCall) -> Grid:
    return call.height, call.width
