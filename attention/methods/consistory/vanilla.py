"""The queries that the model has without sharing: mixed in, they keep the layouts of a story's images different."""

from __future__ import annotations

from collections.abc import Hashable, Iterator

import torch
from torch import Tensor

from ...engine.bank import FeatureBank
from ...engine.call import AttentionCall, AttentionSite
from ...engine.layout import Chunk

VANILLA = "vanilla query"


def keep_vanilla(call: AttentionCall, bank: FeatureBank) -> None:
    """Keeps the query of an attention in a rehearsal."""
    bank.remember((VANILLA, call.site, call.layout.chunks), call.query)


def blend_vanilla(call: AttentionCall, weight: float, bank: FeatureBank) -> Tensor:
    """The query mixed with the one kept; itself where none was kept."""
    name = VANILLA, call.site, call.layout.chunks
    if name in bank:
        return torch.lerp(call.query, bank.recall(name), weight)
    if not call.moment.extra:
        return call.query
    vanilla = [*_looked_up(call, bank), call.query[call.layout.host_rows :]]
    return torch.lerp(call.query, torch.cat(vanilla), weight)


def _looked_up(call: AttentionCall, bank: FeatureBank) -> Iterator[Tensor]:
    """For each chunk of a further call the queries kept of the step's own, which may hold other chunks beside it."""
    kept = _kept(call.site, bank)
    for number, chunk in enumerate(call.layout.chunks):
        found = next(((name, chunks.index(chunk)) for name, chunks in kept if chunk in chunks), None)
        if found is None:
            yield call.query[call.layout.chunk_rows(number)]
        else:
            name, place = found
            yield bank.recall(name)[call.layout.chunk_rows(place)]


def _kept(site: AttentionSite, bank: FeatureBank) -> list[tuple[Hashable, tuple[Chunk, ...]]]:
    """The names of all that is kept of a layer, with the chunks it is of."""
    return [(name, name[2]) for name in bank if isinstance(name, tuple) and name[:2] == (VANILLA, site)]
