"""Which attention of a transformer has come: the host tells the block, but not which of a block's attentions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from ...attention.engine.call import AttentionKind, AttentionSite
from .streams import SLOT, BlockOccupant, block_in_slot
from .transformer import Transformer


@dataclass(eq=False)
class Whereabouts:
    """Where in a call the host is."""

    transformer: Transformer
    image_tokens: int
    _passed: Counter[Any] = field(default_factory=Counter[Any])
    """How many attentions of each block have come."""
    _last: Any = None
    """The block that the host was in, or is in."""

    def site(self, options: Mapping[str, Any], query: Tensor, key: Tensor) -> AttentionSite | None:
        """The site of the attention that has come; None for one that is no block's own, such as a refiner's."""
        kind = self.transformer.kind
        if kind.counted:
            if self._last is None or _is_foreign("joint", query, key):
                return None
            return AttentionSite("self" if query.shape[-2] == self.image_tokens else "joint", *self._last)
        if "block_index" not in options:
            return None
        parts = list(kind.blocks)
        part = parts[parts.index(told)] if (told := options.get("block_type")) in parts else parts[0]
        block = part, int(options["block_index"])
        attentions = self.transformer.attentions.get(block)
        if attentions is None:
            return None
        again = self._passed[block] >= len(attentions) and query.shape[-2] == key.shape[-2]
        if again or (block != self._last and self._passed[block]):
            self._passed.clear()  # the model, or the block, runs once more in this call
        self._last = block
        attention = attentions[min(self._passed[block], len(attentions) - 1)]
        if _is_foreign(attention, query, key):
            return None
        self._passed[block] += 1
        return AttentionSite(attention, *block)

    def told(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options with seats around the blocks of a host that does not say which one it is in."""
        if not self.transformer.kind.counted:
            return dict(options)
        slots = options.get("patches_replace", {})
        around: dict[Any, Any] = dict(slots.get(SLOT, {}))
        part = next(iter(self.transformer.kind.blocks))
        for number in range(self.transformer.blocks):
            key = f"{part}_block", number
            around[key] = partial(self._within, (part, number), around.get(key))
        return {**options, "patches_replace": {**slots, SLOT: around}}

    def _within(
        self, block: Any, occupant: BlockOccupant | None, given: dict[str, Any], extra: dict[str, Any]
    ) -> dict[str, Any]:
        """In a block's slot: what comes out of it, while it is known that this is the block."""
        self._last = block
        try:
            return block_in_slot(occupant, given, extra)
        finally:
            self._last = None


def _is_foreign(expected: AttentionKind, query: Tensor, key: Tensor) -> bool:
    """Whether this is another pack's own attention inside a block, as of an image adapter to its tokens.

    Where a picture attends to itself, packs may have appended keys, but none are missing.
    """
    return expected != "cross" and key.shape[-2] < query.shape[-2]
