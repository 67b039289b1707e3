"""Attention in which some images also attend to tokens of others: keys are gathered, not masked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from .call import AttentionCall, SharedTokens


class Attention(Protocol):
    """Attention of some of a call's rows."""

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        images: int,
        mask: Tensor | None = None,
        span: slice = slice(None),
    ) -> Tensor:
        """Packed output. Rows are chunk-major, `images` to a chunk; 0 means guest rows.

        `span` says which of the call's queries these are; for a UNet, which has no text among them, always all.
        """
        ...


def attend_in_groups(call: AttentionCall, attention: Attention) -> Tensor:
    """The attention of `call` with its shared tokens: `attention` runs once for all images that share the same."""
    layout = call.layout
    output = _packed_like(call.query)
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
        mask = call.mask if call.mask is None or len(call.mask) == 1 else call.mask[rows]
        output[rows] = attention(call.query[rows], call.key[rows], call.value[rows], 0, mask)
    return output


def merge_shared(*shared: SharedTokens) -> tuple[SharedTokens, ...]:
    """The shared tokens of several methods as one, so that no image stands in two of them."""
    watchers: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for image in sorted({image for tokens in shared for image in tokens.images}):
        watchers[tuple(index for index, tokens in enumerate(shared) if image in tokens.images)].append(image)
    return tuple(
        SharedTokens(
            tuple(images),
            torch.cat([shared[index].key for index in indices], dim=-2),
            torch.cat([shared[index].value for index in indices], dim=-2),
            any(shared[index].instead for index in indices),
            next((shared[index].own for index in reversed(indices) if shared[index].own is not None), None),
        )
        for indices, images in watchers.items()
    )


def select_rows(rows: Tensor, indices: Sequence[int], dim: int) -> Tensor:
    """Some of the rows along a dimension, as `rows[indices]`, without making the GPU wait."""
    # A list in brackets becomes a tensor on the CPU, and a GPU waits for it in every attention.
    return torch.stack([rows.select(dim, index) for index in indices], dim)


def _packed_like(query: Tensor) -> Tensor:
    """An empty tensor for what attention gives."""
    if query.ndim == 3:
        return torch.empty_like(query)
    rows, heads, tokens, head_dim = query.shape
    return query.new_empty(rows, tokens, heads * head_dim)


def _write(host: Tensor, images: Sequence[int], made: Tensor) -> None:
    """Writes what was made of some images into (chunks, images, tokens, channels)."""
    for index, image in enumerate(images):
        host[:, image] = made[:, index]


def _attended(
    call: AttentionCall, images: Sequence[int], attention: Attention, shared: SharedTokens | None = None
) -> Tensor:
    """The output of some images of every chunk: (chunks, images, tokens, channels)."""
    query, key, value = (_rows_of(call, rows, images) for rows in (call.query, call.key, call.value))
    mask = call.mask if call.mask is None or len(call.mask) == 1 else _rows_of(call, call.mask, images)
    if shared is None:
        made = attention(query, key, value, len(images), mask)
    else:
        seen = key, value
        if shared.own is not None:
            seen = _rows_of(call, shared.own[0], images), _rows_of(call, shared.own[1], images)
        made = _attended_with(shared, call.image, attention, query, key, value, seen, len(images), mask)
    return torch.unflatten(made, 0, (-1, len(images)))


def _rows_of(call: AttentionCall, rows: Tensor, images: Sequence[int]) -> Tensor:
    """The rows of some images of every chunk."""
    layout = call.layout
    if tuple(images) == tuple(range(layout.images)):
        return rows[: layout.host_rows]
    return select_rows(torch.unflatten(rows[: layout.host_rows], 0, (-1, layout.images)), images, dim=1).flatten(0, 1)


def _attended_with(
    shared: SharedTokens,
    image: slice,
    attention: Attention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    own: tuple[Tensor, Tensor],
    images: int,
    mask: Tensor | None,
) -> Tensor:
    """Attention of the picture's tokens to the shared ones too, and of all others to the call's alone."""
    longer = _joined(own[0], shared.key, image, shared.instead), _joined(own[1], shared.value, image, shared.instead)
    longer_mask = None if mask is None else _widened(mask, shared.key.shape[-2], image, shared.instead)
    first, end, _ = image.indices(query.shape[-2])
    if end - first == query.shape[-2]:
        return attention(query, *longer, images, longer_mask)
    middle = slice(first, end)
    seen = attention(query[..., middle, :], *longer, images, _of_queries(longer_mask, middle), middle)
    spans = slice(0, first), slice(end, query.shape[-2])
    before, after = (
        seen[:, :0]
        if span.start == span.stop
        else attention(query[..., span, :], key, value, images, _of_queries(mask, span), span)
        for span in spans
    )
    return torch.cat([before, seen, after], dim=1)


def _joined(own: Tensor, others: Tensor, image: slice, instead: bool) -> Tensor:
    """Keys or values of some images (rows, ...) with those of elsewhere (chunks, ...)."""
    chunks = len(others)
    each = others[:, None].expand(-1, len(own) // chunks, *others.shape[1:]).flatten(0, 1).to(own)
    first, end, _ = image.indices(own.shape[-2])
    kept = [own[..., :first, :], own[..., end:, :]] if instead else [own]
    return torch.cat([*kept, each], dim=-2)


def _widened(mask: Tensor, tokens: int, image: slice, instead: bool) -> Tensor:
    """A mask on the keys that also lets so many shared ones through."""
    keys = mask.shape[-1]
    if keys == 1:
        return mask
    first, end, _ = image.indices(keys)
    kept = torch.cat([mask[..., :first], mask[..., end:]], dim=-1) if instead else mask
    return torch.nn.functional.pad(kept, (0, tokens), value=True if mask.dtype == torch.bool else 0.0)


def _of_queries(mask: Tensor | None, span: slice) -> Tensor | None:
    return mask if mask is None or mask.shape[-2] == 1 else mask[..., span, :]
