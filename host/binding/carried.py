"""How a MODEL carries our patches: as plain values in its options, in the order of the nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...attention.engine.patch import AttentionPatch

KEY = "semblance"


class Uncopied:
    """What nodes that copy a MODEL's options deeply, some at every step, get as it is: it is known by its identity."""

    def __deepcopy__(self, memo: Any) -> Any:
        return self


@dataclass(frozen=True, eq=False)
class Carried(Uncopied):
    """The patches of a MODEL, in the order their nodes were applied.

    They lie in `transformer_options` under a name of ours. Other nodes walk through `patches` and `patches_replace`
    there and take every entry for a function; what lies beside these, ComfyUI and they hand on untouched.
    """

    patches: tuple[AttentionPatch, ...] = ()


def carried_patches(transformer_options: Mapping[str, Any]) -> tuple[AttentionPatch, ...]:
    """The patches in these options, in the order their nodes were applied."""
    carried: Carried = transformer_options.get(KEY, Carried())
    return carried.patches


def carry(transformer_options: dict[str, Any], patches: tuple[AttentionPatch, ...]) -> None:
    """Puts `patches` into these options, in place of those there."""
    transformer_options[KEY] = Carried(patches)
