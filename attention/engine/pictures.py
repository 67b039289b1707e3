"""What an attention shows of the pictures that a patch shows to the model."""

from __future__ import annotations

from torch import Tensor

from .call import AttentionCall
from .protocols import ShowsPictures
from .unexpected import UnexpectedCall

KEPT_APART = 5.0
"""As how many images the keys and values count that are kept of a picture which does not ride: about that in
Qwen-Image, 3 in Flux."""


def features_of(call: AttentionCall, patch: ShowsPictures, name: str) -> tuple[Tensor, ...]:
    """What `patch` takes of its picture `name` in this attention, a row for each chunk."""
    kept = call.apart.get((id(patch), name))
    if kept is not None:
        return kept
    shown = call.whole or call
    try:
        rows = shown.layout.guest_rows(patch, name)
    except KeyError:
        raise UnexpectedCall(
            f"The model was shown the picture '{name}', and no attention of {call.site.block} came of it.",
            "Bypass the node that answers in the model's place, as a cache does.",
        ) from None
    query, key, value = (part[rows][..., call.image, :] for part in (shown.query, shown.key, shown.value))
    return patch.features(query, key, value)
