"""What other packs do to a model that ours is on: replaced attentions, other kernels, tiles."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import comfy.ldm.modules.attention as host_attention
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from semblance.attention.engine.call import AttentionKind


class Foreigner:
    """Another pack's replacement, which scales attention's output and counts its calls by site."""

    def __init__(self, scale: float = 0.8, hand_on_options: bool = True) -> None:
        self.scale = scale
        self.hand_on_options = hand_on_options
        self.sites: Counter[tuple[Any, ...]] = Counter()

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, extra: dict[str, Any]) -> Tensor:
        self.sites[(*extra["block"], extra["block_index"])] += 1
        assert len(query) % len(extra["cond_or_uncond"]) == 0
        options = {"transformer_options": extra} if self.hand_on_options else {}
        return self.scale * host_attention.optimized_attention(query, key, value, extra["n_heads"], **options)

    def on(self, model: ModelPatcher, kind: AttentionKind, parts: int) -> ModelPatcher:
        """A clone of `model` with this in two or three attentions of `kind`, under keys of two or three parts."""
        replaced = model.clone()
        replace = {"self": replaced.set_model_attn1_replace, "cross": replaced.set_model_attn2_replace}[kind]
        for part, number in (("input", 4), ("middle", 0), ("output", 5)):
            replace(self, part, number, *([0] if parts == 3 else []))
        return replaced


class Kernel:
    """Another pack's choice of attention kernel."""

    def __init__(self, scale: float) -> None:
        self.scale = scale
        self.calls = 0

    def __call__(self, attention: Callable[..., Tensor], *tensors: Any, **named: Any) -> Tensor:
        self.calls += 1
        return self.scale * attention(*tensors, **named)

    def on(self, model: ModelPatcher) -> ModelPatcher:
        chosen = model.clone()
        chosen.model_options["transformer_options"]["optimized_attention_override"] = self
        return chosen


def one_tile_after_another(apply_model: Callable[..., Tensor], args: dict[str, Any]) -> Tensor:
    tiles = [apply_model(tile, args["timestep"], **args["c"]) for tile in args["input"].chunk(2, dim=2)]
    return torch.cat(tiles, dim=2)
