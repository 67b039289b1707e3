"""Another pack's attention at a site of ours, called with the rows and the tokens that it expects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ...attention.engine.call import AttentionSite
from ...attention.engine.unexpected import UnexpectedCall

Occupant = Callable[[Tensor, Tensor, Tensor, dict[str, Any]], Tensor]
"""What another pack left at a site: (query, key, value, extra_options) -> attention's output."""
SHAPES = ("activations_shape", "original_shape")
"""The options of a block that tell of its rows."""


def tell_rows(extra: dict[str, Any], rows: int) -> dict[str, Any]:
    """The options of a block as they would be with so many rows.

    Edited in place: what one patch of a block notes in them, another looks up.
    """
    for name in SHAPES:
        if name in extra:
            extra[name] = [rows, *extra[name][1:]]
    return extra


def attend_as_batch(
    occupant: Occupant, site: AttentionSite, extra: dict[str, Any], query: Tensor, key: Tensor, value: Tensor, own: int
) -> Tensor:
    """The occupant's attention of some of the rows, as of a smaller batch; the first `own` keys of each are its own."""
    whole = {name: extra[name] for name in SHAPES if name in extra}
    try:
        made = occupant(query, key, value, tell_rows(extra, len(query)))
        if made.shape[1] == key.shape[1] != query.shape[1]:
            # It does not attend, as in perturbed guidance, but gives back the values: those of others are no part.
            made = occupant(query, key[:, :own], value[:, :own], extra)
    finally:
        extra.update(whole)
    return checked(made, query, site)


def checked(made: Tensor, query: Tensor, site: AttentionSite) -> Tensor:
    """What an occupant made. Raises UnexpectedCall if it is not one token for each of the query's."""
    if made.shape[:2] != query.shape[:2]:
        raise UnexpectedCall(
            f"At {site} another node puts {made.shape[1]} tokens in the place of {query.shape[1]}, because a Semblance "
            "patch attends to tokens of other images there.",
            "Bypass the node that replaces the attention, or one of the two for this block.",
        )
    return made
