"""Parts of an attention whose tokens are more than the picture's: the sampler's rows, and weights on the picture."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .call import AttentionCall


def of_the_sampler(call: AttentionCall) -> AttentionCall:
    """The attention of the sampler's rows alone."""
    rows = call.layout.host_rows
    query, key, value = call.query[:rows], call.key[:rows], call.value[:rows]
    mask = call.mask if call.mask is None or len(call.mask) == 1 else call.mask[:rows]
    layout, whole = replace(call.layout, guests=()), call.whole or call
    return replace(call, layout=layout, query=query, key=key, value=value, mask=mask, whole=whole)


def on_every_token(area: Tensor, call: AttentionCall) -> Tensor:
    """Weights (chunks, images, picture tokens, 1) as (rows, tokens, 1): all that is not the picture's has none."""
    tokens = call.query.shape[-2]
    first, end, _ = call.image.indices(tokens)
    weights = area.flatten(0, 1)
    weights = weights.repeat(1, (end - first) // weights.shape[1], 1)  # one area for every frame
    return torch.nn.functional.pad(weights, (0, 0, first, tokens - end))
