"""Attention in which some images also attend to tokens of others: keys are gathered, not masked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .call import AttentionCall, SharedTokens

Attention = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""(query, key, value, images) -> output. Rows are chunk-major, `images` to a chunk; 0 means guest rows."""


def attend_in_groups(call: AttentionCall, attention: Attention) -> Tensor:
    """The attention of `call` with its shared tokens: `attention` runs once for all images that share the same."""
    layout = call.layout
    output = torch.empty_like(call.query)
    host = torch.unflatten(output[: layout.host_rows], 0, (-1, layout.images))  # -> (chunks, images, tokens, channels)
    alone = set(range(layout.images))
    for shared in call.shared:
        alone -= set(shared.images)
        _write(host, shared.images, _attended(call, shared.images, attention, shared))
    if alone:
        images = sorted(alone)
        _write(host, images, _attended(call, images, attention))
    if layout.guests:
        rows = slice(layout.host_rows, None)
        output[rows] = attention(call.query[rows], call.key[rows], call.value[rows], 0)
    return output


def merge_shared(*shared: SharedTokens) -> tuple[SharedTokens, ...]:
    """The shared tokens of several methods as one, so that no image stands in two of them."""
    watchers: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for image in sorted({image for tokens in shared for image in tokens.images}):
        watchers[tuple(index for index, tokens in enumerate(shared) if image in tokens.images)].append(image)
    return tuple(
        SharedTokens(
            tuple(images),
            torch.cat([shared[index].key for index in indices], dim=1),
            torch.cat([shared[index].value for index in indices], dim=1),
        )
        for indices, images in watchers.items()
    )


def select_rows(rows: Tensor, indices: Sequence[int], dim: int) -> Tensor:
    """Some of the rows along a dimension, as `rows[indices]`, without making the GPU wait."""
    # A list in brackets becomes a tensor on the CPU, and a GPU waits for it in every attention.
    return torch.stack([rows.select(dim, index) for index in indices], dim)


def _write(host: Tensor, images: Sequence[int], made: Tensor) -> None:
    """Writes what was made of some images into (chunks, images, tokens, channels)."""
    for index, image in enumerate(images):
        host[:, image] = made[:, index]


def _attended(
    call: AttentionCall, images: Sequence[int], attention: Attention, shared: SharedTokens | None = None
) -> Tensor:
    """The output of some images of every chunk: (chunks, images, tokens, channels)."""
    layout = call.layout
    query, key, value = (
        select_rows(torch.unflatten(rows[: layout.host_rows], 0, (-1, layout.images)), images, dim=1)
        for rows in (call.query, call.key, call.value)
    )
    if shared is not None:
        key, value = (
            torch.cat([own, others[:, None].expand(-1, len(images), -1, -1).to(own)], dim=2)
            for own, others in ((key, shared.key), (value, shared.value))
        )
    made = attention(query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1), len(images))
    return torch.unflatten(made, 0, (-1, len(images)))
