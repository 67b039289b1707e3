"""A MODEL once for each block that its last patch acts in: what each block does, whatever the family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..attention.engine.patch import AttentionPatch
from ..attention.engine.scope import Scope
from .binding.model import blocks_of, exchange_patch, patches_on

ALONE, WITHOUT = "each alone", "all but each"
WAYS = (ALONE, WITHOUT)


def each_block(model: Any, way: str, together: int) -> list[tuple[str, Any]]:
    """Captions and MODELs in the order of the blocks: the last patch acts in `together` of them alone, or not there.

    Raises ValueError for a MODEL without a patch that has blocks, or with a single block to try.
    """
    patch, scope = _last_with_blocks(model)
    blocks = [block for block in blocks_of(model) if scope.blocks.get(block)]
    if len(blocks) <= together:
        raise ValueError(
            f"{patch!r} acts in {len(blocks)} blocks, which leaves nothing to compare. Choose more blocks on its node, "
            "or fewer together."
        )
    groups = [blocks[start : start + together] for start in range(0, len(blocks), together)]
    return [(_caption(group), _acting_in(model, patch, scope, _chosen(scope, group, way))) for group in groups]


def _last_with_blocks(model: Any) -> tuple[AttentionPatch, Scope]:
    for patch in reversed(patches_on(model)):
        scope = getattr(patch, "scope", None)
        if isinstance(scope, Scope):
            return patch, scope
    found = ", ".join(map(repr, patches_on(model))) or "no Semblance patch"
    raise ValueError(
        f"The model carries {found}, and nothing whose blocks can be tried one by one. Connect the MODEL of "
        "InstantStyle, Reference Style, StyleID or Apply Style Adapter."
    )


def _chosen(scope: Scope, group: list[str], way: str) -> dict[str, float]:
    return {block: weight for block, weight in scope.blocks.items() if (block in group) == (way == ALONE)}


def _acting_in(model: Any, patch: AttentionPatch, scope: Scope, blocks: Mapping[str, float]) -> Any:
    narrowed: Any = replace(patch, scope=replace(scope, blocks=blocks))  # type: ignore[type-var]
    return exchange_patch(model, patch, narrowed)


def _caption(group: list[str]) -> str:
    return group[0] if len(group) == 1 else f"{group[0]} to {group[-1]}"
