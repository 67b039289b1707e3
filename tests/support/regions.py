"""Regional prompts as other packs make them: rows repeated before each cross-attention, folded by masks after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from semblance.attention.functional.attention import joined_contexts

NEGATIVE = 1


class AttentionCouple:
    """Repeats the rows of positive prompts for each region. `texts` are the regions' own; None is that of the rows."""

    def __init__(self, texts: Sequence[Tensor | None] = (None, None)) -> None:
        self.texts = texts
        self.folded = 0

    def on(self, model: ModelPatcher) -> ModelPatcher:
        coupled = model.clone()
        coupled.set_model_attn2_patch(self.repeat)
        coupled.set_model_attn2_output_patch(self.fold)
        return coupled

    def repeat(self, hidden: Tensor, context: Tensor, value: Tensor, extra: dict[str, Any]) -> tuple[Tensor, ...]:
        numbers = list(extra["cond_or_uncond"])
        assert len(hidden) % len(numbers) == 0 and extra["activations_shape"][0] == len(hidden)
        rows, texts = [], []
        for number, own, text in zip(numbers, hidden.chunk(len(numbers)), context.chunk(len(numbers)), strict=True):
            regions = [None] if number == NEGATIVE else self.texts
            rows += [own] * len(regions)
            texts += [text if region is None else region.to(text).expand(len(text), -1, -1) for region in regions]
        self.note([n for n in numbers for _ in ([1] if n == NEGATIVE else self.texts)], numbers, extra)
        joined = joined_contexts(texts)  # these packs repeat texts up to a common length, as ComfyUI does
        return torch.cat(rows), joined, joined

    def fold(self, output: Tensor, extra: dict[str, Any]) -> Tensor:
        numbers = self.numbers(extra)
        repeated = [1 if number == NEGATIVE else len(self.texts) for number in numbers]
        height, width = extra["activations_shape"][-2:]
        masks = regions(len(self.texts), height, width).to(output)
        folded, copies = [], list(output.chunk(sum(repeated)))
        for count in repeated:
            own, copies = copies[:count], copies[count:]
            folded.append(own[0] if count == 1 else sum(mask * copy for mask, copy in zip(masks, own, strict=True)))
        self.folded += 1
        return torch.cat(folded)

    def note(self, order: list[int], numbers: list[int], extra: dict[str, Any]) -> None:
        """Leaves nothing behind for others to read."""

    def numbers(self, extra: dict[str, Any]) -> list[int]:
        return extra["cond_or_uncond"]


class NotesInPlace(AttentionCouple):
    """Writes the new order into ComfyUI's own list, and takes it out again."""

    def note(self, order: list[int], numbers: list[int], extra: dict[str, Any]) -> None:
        self.before = numbers
        extra["cond_or_uncond"][:] = order

    def numbers(self, extra: dict[str, Any]) -> list[int]:
        extra["cond_or_uncond"][:] = self.before
        return self.before


class NotesAside(AttentionCouple):
    """Leaves a list of its own in the options of the block, and looks for it there."""

    def note(self, order: list[int], numbers: list[int], extra: dict[str, Any]) -> None:
        extra["cond_or_uncond_couple"] = order

    def numbers(self, extra: dict[str, Any]) -> list[int]:
        order, numbers = extra["cond_or_uncond_couple"], extra["cond_or_uncond"]
        assert len(order) == sum(1 if number == NEGATIVE else len(self.texts) for number in numbers)
        return numbers


COUPLES: dict[str, Callable[..., AttentionCouple]] = {
    "no note": AttentionCouple,
    "a note in place": NotesInPlace,
    "a note aside": NotesAside,
}


def regions(count: int, height: int, width: int) -> Tensor:
    """Masks of columns side by side that add up to one: (count, height * width, 1)."""
    column = torch.arange(width) * count // width
    return torch.stack([(column == region).float().repeat(height)[:, None] for region in range(count)])
