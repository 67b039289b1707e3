"""The U-ViT of the public PyTorch port of StyleDrop, in plain torch, with the pack's bottleneck in it.

The port is github.com/aim-uofa/StyleDrop-PyTorch, by others than the paper's authors, who released no code. The text is
prepended to the picture's tokens; skips run from the first half of the blocks to the second. The port does not count on
in the second half, so that all its blocks share one row of the adapter and the middle block has none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from semblance.attention.functional.bottleneck import bottleneck

EPS = 1e-6
"""Of the norm after the embedding, in the port alone."""
Adapter = Mapping[str, Tensor]
"""`WD` and `WU` of each layer, flat; in the shared form one row of these and the additions `DD` and `DU` of each."""


def rows_of(depth: int, shared_out_rows: bool) -> list[int | None]:
    """The adapter's row of each block: with the port's fault, or counted on as its tables are long."""
    half = depth // 2
    last = [half] * half if shared_out_rows else list(range(half, depth))
    return [*range(half), None, *last]


def down_and_up(adapter: Adapter, row: int, channels: int) -> tuple[Tensor, Tensor]:
    """The bottleneck of a row: (width, channels) and (channels, width)."""
    place = 0 if "DD" in adapter else row
    down, up = adapter["WD"][place].reshape(channels, -1), adapter["WU"][place].reshape(-1, channels)
    if "DD" in adapter:
        down, up = down + adapter["DD"][row], up + adapter["DU"][row]
    return down.mT, up.mT


@dataclass(frozen=True, eq=False)
class PortUViT:
    weights: Mapping[str, Tensor]
    config: Mapping[str, Any]

    @property
    def channels(self) -> int:
        return self.config["embed_dim"]

    def logits(
        self, ids: Tensor, context: Tensor, adapter: Adapter | None = None, rows: Sequence[int | None] | None = None
    ) -> Tensor:
        """Logits (images, tokens, codebook) of `ids` (images, tokens) with the text `context`."""
        depth = self.config["depth"]
        rows = rows_of(depth, shared_out_rows=True) if rows is None else rows
        text = self._linear("context_embed", context.expand(len(ids), -1, -1))
        hidden = torch.cat([text, self._embedded(ids)], dim=1)
        names = [f"in_blocks.{n}" for n in range(depth // 2)] + ["mid_block"]
        names += [f"out_blocks.{n}" for n in range(depth // 2)]
        skips: list[Tensor] = []
        for name, row in zip(names, rows, strict=True):
            if name.startswith("out"):
                hidden = self._linear(f"{name}.skip_linear", torch.cat([hidden, skips.pop()], dim=-1))
            added = None if adapter is None or row is None else down_and_up(adapter, row, self.channels)
            hidden = self._block(name, hidden, added)
            if name.startswith("in"):
                skips.append(hidden)
        hidden = self._norm("norm", hidden)[:, context.shape[-2] :]
        hidden = functional.gelu(self._linear("mlm_layer.fc", hidden))
        words = self.weights["token_emb.word_embeddings.weight"]
        found = self._norm("mlm_layer.ln", hidden) @ words.mT + self.weights["mlm_layer.bias"]
        return found[..., : self.config["codebook_size"]]

    def _embedded(self, ids: Tensor) -> Tensor:
        places = self.weights["token_emb.position_embeddings.weight"]
        return self._norm("token_emb.LayerNorm", self.weights["token_emb.word_embeddings.weight"][ids] + places)

    def _block(self, name: str, hidden: Tensor, added: tuple[Tensor, Tensor] | None) -> Tensor:
        attended = self._attention(name, self._norm(f"{name}.norm1", hidden))
        if added is not None:
            attended = attended + bottleneck(attended, *added)
        hidden = hidden + attended
        inner = functional.gelu(self._linear(f"{name}.mlp.fc1", self._norm(f"{name}.norm2", hidden)))
        return hidden + self._linear(f"{name}.mlp.fc2", inner)

    def _attention(self, name: str, hidden: Tensor) -> Tensor:
        heads = self.config["num_heads"]
        packed = self._linear(f"{name}.attn.qkv", hidden).unflatten(-1, (3, heads, -1))
        query, key, value = packed.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value)
        return self._linear(f"{name}.attn.proj", attended.transpose(1, 2).flatten(2))

    def _linear(self, name: str, hidden: Tensor) -> Tensor:
        return functional.linear(hidden, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def _norm(self, name: str, hidden: Tensor) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return functional.layer_norm(hidden, hidden.shape[-1:], weight, bias, EPS if "emb" in name else 1e-5)
