"""The queries that the model has without sharing: mixed in, they keep the layouts of a story's images different."""

from __future__ import annotations

from collections.abc import Hashable, Iterator

import torch
from torch import Tensor

from ...engine.bank import FeatureBank
from ...engine.call import AttentionCall
from ...engine.layout import Chunk
from ...engine.moment import Moment

VANILLA = "vanilla query"


def keep_vanilla(call: AttentionCall, bank: FeatureBank) -> None:
    """Keeps the query of an attention in a rehearsal."""
    bank.remember((VANILLA, *_when(call.moment), call.site, call.layout.chunks), call.query)


def forget_vanilla(moment: Moment, bank: FeatureBank) -> None:
    """Drops what was kept at another noise level. ComfyUI may send a level's conditionings one after another."""
    now = (VANILLA, *_when(moment))
    bank.forget(lambda name: isinstance(name, tuple) and name[:1] == now[:1] and name[: len(now)] != now)


def blend_vanilla(call: AttentionCall, weight: float, bank: FeatureBank) -> Tensor:
    """The query mixed with the one kept; itself where none was kept."""
    name = VANILLA, *_when(call.moment), call.site, call.layout.chunks
    if name in bank:
        return torch.lerp(call.query, bank.recall(name), weight)
    if not call.moment.extra:
        return call.query
    vanilla = [*_looked_up(call, bank), call.query[call.layout.host_rows :]]
    return torch.lerp(call.query, torch.cat(vanilla), weight)


def _looked_up(call: AttentionCall, bank: FeatureBank) -> Iterator[Tensor]:
    """For each chunk of a further call the queries kept of the step's own, which may hold other chunks beside it."""
    kept = _kept(call, bank)
    for number, chunk in enumerate(call.layout.chunks):
        found = next(((name, chunks.index(chunk)) for name, chunks in kept if chunk in chunks), None)
        if found is None:
            yield call.query[call.layout.chunk_rows(number)]
        else:
            name, place = found
            yield bank.recall(name)[call.layout.chunk_rows(place)]


def _kept(call: AttentionCall, bank: FeatureBank) -> list[tuple[Hashable, tuple[Chunk, ...]]]:
    """The names of all that is kept of a layer at a noise level, with the chunks it is of."""
    here = VANILLA, *_when(call.moment), call.site
    return [(name, name[-1]) for name in bank if isinstance(name, tuple) and name[:-1] == here]


def _when(moment: Moment) -> tuple[int, int, float]:
    return moment.pass_number, moment.step, moment.sigma
