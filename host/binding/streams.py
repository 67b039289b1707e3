"""What an attention of Flux does not show: how its tokens are rotated, and what leaves its blocks.

The host tells the first to the list of patches before an attention, and calls the second through a slot of the block.
Ours run after those of other packs, and are gone after the call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from ...attention.engine.call import AttentionSite
from ...attention.engine.protocols import EditsStreams
from .carried import Uncopied
from .unet import PatchWithBank

SLOT = "dit"
BlockOccupant = Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]
"""What another pack left in a block's slot: (the block's inputs, the block itself) -> its outputs."""


@dataclass(eq=False)
class Streams(Uncopied):
    """The seats of one call of the model."""

    acting_at: Mapping[AttentionSite, Sequence[PatchWithBank]]
    tells_rotation: bool
    rotation: Tensor | None = field(default=None, init=False)
    """Of the attention that comes next, (rows or 1, 1, tokens, head_dim / 2, 2, 2)."""

    def seated(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options with our seats after, or around, those of other packs."""
        if not self.tells_rotation or not self.acting_at:
            return dict(options)
        patches, slots = options.get("patches", {}), options.get("patches_replace", {})
        noting = {**patches, "attn1_patch": [*patches.get("attn1_patch", ()), self._note]}
        around = {**slots.get(SLOT, {}), **dict(self._around(slots.get(SLOT, {})))}
        return {**options, "patches": noting, "patches_replace": {**slots, SLOT: around}}

    def _note(
        self, _query: Tensor, _key: Tensor, _value: Tensor, *, pe: Tensor | None, **_named: Any
    ) -> dict[str, Any]:
        self.rotation = pe
        return {}

    def _around(self, slots: Mapping[Any, Any]) -> list[tuple[Any, Any]]:
        editing = {
            site: [(patch, bank) for patch, bank in those if isinstance(patch, EditsStreams)]
            for site, those in self.acting_at.items()
            if site.part == "double"
        }
        keys = {site: (f"{site.part}_block", site.number) for site, those in editing.items() if those}
        return [(key, partial(_after_block, slots.get(key), site, editing[site])) for site, key in keys.items()]


def block_in_slot(occupant: BlockOccupant | None, given: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    """What comes out of a block's slot: of the block itself, or of what another pack put there."""
    return extra["original_block"](given) if occupant is None else occupant(given, extra)


def _after_block(
    occupant: BlockOccupant | None,
    site: AttentionSite,
    editing: Sequence[tuple[EditsStreams, Any]],
    given: dict[str, Any],
    extra: dict[str, Any],
) -> dict[str, Any]:
    """In a block's slot: what came out of it, and then the patches."""
    made = block_in_slot(occupant, given, extra)
    picture = made["img"]
    for patch, bank in editing:
        picture = patch.edit_stream(site, picture, bank)
    return {**made, "img": picture}
