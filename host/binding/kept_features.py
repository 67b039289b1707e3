"""What patches take of pictures that go through the model before the sampler's rows do."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...attention.engine.call import AttentionSite
from ...attention.engine.patch import AttentionPatch
from ...attention.engine.protocols import ShowsPictures

Owner = tuple[int, str]
"""A patch by its id, and its picture's name."""


@dataclass(eq=False)
class KeptFeatures:
    """What patches take of the pictures that went through the model before a call, by site."""

    _rows: dict[AttentionSite, dict[Owner, list[tuple[Tensor, ...]]]] = field(default_factory=dict)

    def keep(self, site: AttentionSite, owner: Owner, features: tuple[Tensor, ...]) -> None:
        """Adds what was taken of one row; rows come in the order of the chunks."""
        self._rows.setdefault(site, defaultdict(list))[owner].append(features)

    def at(self, site: AttentionSite) -> Mapping[Hashable, tuple[Tensor, ...]]:
        """What was kept for a site, a row for each chunk."""
        rows = self._rows.get(site, {})
        return {
            owner: kept[0] if len(kept) == 1 else tuple(torch.cat(parts) for parts in zip(*kept, strict=True))
            for owner, kept in rows.items()
        }


def keep_features(
    kept: KeptFeatures,
    site: AttentionSite,
    acting: AbstractSet[int],
    shown: Sequence[tuple[AttentionPatch, str]],
    image: slice,
    query: Tensor,
    key: Tensor,
    value: Tensor,
) -> None:
    """Keeps, for every patch that acts at a site, what it takes of its pictures there."""
    for row, (patch, name) in enumerate(shown):
        if id(patch) in acting and isinstance(patch, ShowsPictures):
            own = (part[row : row + 1, ..., image, :] for part in (query, key, value))
            # Copied: a view would keep alive all that the layer computed beside it.
            kept.keep(site, (id(patch), name), tuple(feature.clone() for feature in patch.features(*own)))
