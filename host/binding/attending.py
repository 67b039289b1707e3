"""The host's attention of a transformer, as a method calls it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from ...attention.engine.call import AttentionCall
from ...attention.engine.sharing import attend_in_groups
from .carried import Uncopied

POSITIONS = ("mask", "attn_precision", "skip_reshape", "skip_output_reshape")
"""What follows the number of heads in the host's attention functions, in order."""

IMAGE = "img_slice"
"""The option by which the host tells other packs where, behind the text, the image begins and ends."""


@dataclass(frozen=True, eq=False)
class Attending(Uncopied):
    """An attention that the model asked for, and others with its settings."""

    host: Callable[..., Tensor]
    query: Tensor
    key: Tensor
    value: Tensor
    heads: int
    rest: Sequence[Any]
    named: Mapping[str, Any]

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """Packed output, (rows, query_tokens, heads * head_dim)."""
        return self.host(query, key, value, self.heads, **{**self._settings, "mask": mask})

    def of(self, call: AttentionCall) -> Tensor:
        """What attention gives for `call`, with the tokens that it shares."""
        if not call.shared:
            return self(call.query, call.key, call.value, call.mask)
        return attend_in_groups(call, self._some_rows)

    def plain(self) -> Tensor:
        """The attention as the model asked for it."""
        return self.host(self.query, self.key, self.value, self.heads, *self.rest, **self.named)

    @property
    def options(self) -> Mapping[str, Any]:
        """The host's `transformer_options`."""
        return self.named.get("transformer_options") or {}

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value as an AttentionCall has them; SD 3.5 hands over values with their heads unpacked."""
        return self._in_form(self.query), self._in_form(self.key), self._in_form(self.value)

    @property
    def mask(self) -> Tensor | None:
        """The model's own mask, as (rows or 1, heads or 1, query tokens or 1, key tokens)."""
        mask: Tensor | None = self._settings.get("mask")
        if mask is None or mask.ndim == 4:
            return mask
        return mask[None, None] if mask.ndim == 2 else mask[:, None]

    @cached_property
    def _settings(self) -> dict[str, Any]:
        return {**dict(zip(POSITIONS, self.rest, strict=False)), **self.named}

    def _in_form(self, part: Tensor) -> Tensor:
        return part if self._settings.get("skip_reshape") or part.ndim == 3 else part.flatten(2)

    def _some_rows(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        images: int,
        mask: Tensor | None = None,
        span: slice = slice(None),
    ) -> Tensor:
        options = self.options
        if span == slice(None) or IMAGE not in options:
            return self(query, key, value, mask)
        told = {**options, IMAGE: _within(options[IMAGE], span)}
        return self.host(query, key, value, self.heads, **{**self._settings, "mask": mask, "transformer_options": told})


def _within(image: Sequence[int], span: slice) -> list[int]:
    """Where the image begins and ends among the queries of a span, by where it does among all."""
    return [min(max(end, span.start), span.stop) - span.start for end in image]
