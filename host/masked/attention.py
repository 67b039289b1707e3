"""One attention of the masked transformer, with the places where patches of ComfyUI's UNet may act."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.ldm.modules.attention as host_attention
from torch import Tensor, nn


class Attention(nn.Module):
    """Query, key and value projections, attention, output projection; named as in the published files."""

    def __init__(self, channels: int, context: int, heads: int, bias: bool, ops: Any, **place: Any) -> None:
        super().__init__()
        self.heads = heads
        self.dim_head = channels // heads
        self.to_q = ops.Linear(channels, channels, bias=bias, **place)
        self.to_k = ops.Linear(context, channels, bias=bias, **place)
        self.to_v = ops.Linear(context, channels, bias=bias, **place)
        self.to_out = nn.ModuleList([ops.Linear(channels, channels, bias=bias, **place)])

    def forward(self, hidden: Tensor, context: Tensor, options: dict[str, Any]) -> Tensor:
        """Attention of `hidden` (rows, tokens, channels) to `context`, where no patch acts."""
        query, key, value = self.to_q(hidden), self.to_k(context), self.to_v(context)
        return self.to_out[0](self._attended(query, key, value, options))

    def patched(self, slot: str, hidden: Tensor, context: Tensor, options: dict[str, Any]) -> Tensor:
        """The same with the patches of a slot, `attn1` or `attn2`, in the order of ComfyUI's UNet."""
        patches = options.get("patches", {})
        extra = self._extra(options)
        value_source = context
        for patch in patches.get(f"{slot}_patch", ()):
            hidden, context, value_source = patch(hidden, context, value_source, extra)
        query, key, value = self.to_q(hidden), self.to_k(context), self.to_v(value_source)
        occupant = self._occupant(slot, options)
        if occupant is None:
            attended = self._attended(query, key, value, options)
        else:
            attended = occupant(query, key, value, extra)
        output = self.to_out[0](attended)
        for patch in patches.get(f"{slot}_output_patch", ()):
            output = patch(output, extra)
        return output

    def _attended(self, query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]) -> Tensor:
        # Looked up at each call, since packs rebind it.
        return host_attention.optimized_attention(query, key, value, self.heads, transformer_options=options)

    def _extra(self, options: Mapping[str, Any]) -> dict[str, Any]:
        extra = {name: option for name, option in options.items() if name not in ("patches", "patches_replace")}
        return {**extra, "n_heads": self.heads, "dim_head": self.dim_head, "attn_precision": None}

    @staticmethod
    def _occupant(slot: str, options: Mapping[str, Any]) -> Any:
        replaced = options.get("patches_replace", {}).get(slot, {})
        block = options["block"]
        return replaced.get((*block, options["block_index"]), replaced.get(block))
