"""What the host does in a run: each call of the model, and each attention that `optimized_attention_override` sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import comfy.patcher_extension
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

Edit = Callable[[int, Tensor], Tensor]
"""What becomes of an output, by the number of its attention within the call of the model."""


@dataclass(frozen=True, eq=False)
class SeenAttention:
    query: Tensor
    key: Tensor
    value: Tensor
    heads: int
    mask: Tensor | None
    unpacked: bool  # the tensors are (rows, heads, tokens, head_dim), else (rows, tokens, heads * head_dim)
    options: Mapping[str, Any]  # transformer_options at that moment
    output: Tensor

    @property
    def rows(self) -> int:
        return len(self.query)

    @property
    def width(self) -> int:
        """Channels of all heads."""
        return self.query.shape[-1] * (self.heads if self.unpacked else 1)

    @property
    def block(self) -> tuple[str | None, int | None]:
        return self.options.get("block_type"), self.options.get("block_index")


@dataclass(eq=False)
class SeenCall:
    """One call of `apply_model`."""

    x: Tensor
    sigma: Tensor
    text: Tensor | None
    conds: Mapping[str, Any]  # all that comes by name
    by_place: int  # how many arguments came by place
    options: Mapping[str, Any]
    attentions: list[SeenAttention] = field(default_factory=list)
    output: Tensor | None = None


def watched(model: ModelPatcher, edit: Edit | None = None) -> tuple[ModelPatcher, list[SeenCall]]:
    """A clone of `model` whose calls are written down; `edit` may change what an attention gives out."""
    calls: list[SeenCall] = []
    watching = model.clone()

    def attend(function: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor, *rest: Any, **named: Any):
        output = function(query, key, value, *rest, **named)
        heads, mask = (*rest, *(named.get(name) for name in ("heads", "mask")[len(rest) :]))[:2]
        options, unpacked = dict(named.get("transformer_options") or {}), bool(named.get("skip_reshape"))
        tensors = (query.clone(), key.clone(), value.clone())
        seen = SeenAttention(*tensors, heads, mask, unpacked, options, output.clone())
        calls[-1].attentions.append(seen)
        return output if edit is None else edit(len(calls[-1].attentions) - 1, output)

    def apply_model(executor: Any, *arguments: Any, **conds: Any) -> Tensor:
        x, sigma, _, text, _, options = arguments
        calls.append(SeenCall(x, sigma, text, conds, len(arguments), dict(options)))
        calls[-1].output = executor(*arguments, **conds)
        return calls[-1].output

    watching.model_options["transformer_options"]["optimized_attention_override"] = attend
    comfy.patcher_extension.add_wrapper_with_key(
        WrappersMP.APPLY_MODEL, "watched", apply_model, watching.model_options, True
    )
    return watching, calls
