"""The projectors of IP-Adapter (arXiv:2308.06721): from an image encoder's output to image tokens.

Modules and parameters have the names of the published files. `operations` is the namespace of the layers: `torch.nn`,
or ComfyUI's own, which casts weights to the input when they are used.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional


class LinearProjection(nn.Module):
    """base, light and vit-G: a few tokens from one embedding of the picture."""

    def __init__(self, clip_width: int, text_width: int, tokens: int, operations: Any = nn) -> None:
        super().__init__()
        self.proj = operations.Linear(clip_width, tokens * text_width)
        self.norm = operations.LayerNorm(text_width)

    def forward(self, embedding: Tensor) -> Tensor:
        """(crops, clip_width) -> (crops, tokens, text_width)"""
        return self.norm(self.proj(embedding).unflatten(-1, (-1, self.norm.normalized_shape[0])))


class DeepProjection(nn.Module):
    """InstantX's adapter for Flux: many tokens from one embedding of the picture, through a hidden layer."""

    def __init__(self, clip_width: int, text_width: int, tokens: int, operations: Any = nn) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            operations.Linear(clip_width, clip_width * 2),
            nn.GELU(),
            operations.Linear(clip_width * 2, tokens * text_width),
        )
        self.norm = operations.LayerNorm(text_width)

    def forward(self, embedding: Tensor) -> Tensor:
        """(crops, clip_width) -> (crops, tokens, text_width)"""
        return self.norm(self.proj(embedding).unflatten(-1, (-1, self.norm.normalized_shape[0])))


class PatchProjection(nn.Module):
    """full-face: one token for each patch state."""

    def __init__(self, clip_width: int, text_width: int, operations: Any = nn) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            operations.Linear(clip_width, clip_width),
            nn.GELU(),
            operations.Linear(clip_width, text_width),
            operations.LayerNorm(text_width),
        )

    def forward(self, patches: Tensor) -> Tensor:
        """(crops, patches, clip_width) -> (crops, patches, text_width)"""
        return self.proj(patches)


class Resampler(nn.Module):
    """plus, plus-face and composition: learned queries attend to the patch states (Perceiver, arXiv:2103.03206)."""

    def __init__(
        self, clip_width: int, text_width: int, tokens: int, width: int, depth: int, heads: int, operations: Any = nn
    ) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.empty(1, tokens, width))
        self.proj_in = operations.Linear(clip_width, width)
        self.proj_out = operations.Linear(width, text_width)
        self.norm_out = operations.LayerNorm(text_width)
        self.layers = nn.ModuleList(
            nn.ModuleList([_PerceiverAttention(width, heads, operations), _feed_forward(width, operations)])
            for _ in range(depth)
        )

    def forward(self, patches: Tensor) -> Tensor:
        """(crops, patches, clip_width) -> (crops, tokens, text_width)"""
        features = self.proj_in(patches)
        latents: Tensor = self.latents.to(features).expand(len(features), -1, -1)
        for layer in self.layers:
            attention, feed_forward = cast(nn.ModuleList, layer)
            latents = latents + attention(features, latents)
            latents = latents + feed_forward(latents)
        return self.norm_out(self.proj_out(latents))


class _PerceiverAttention(nn.Module):
    HEAD_DIM = 64

    def __init__(self, width: int, heads: int, operations: Any) -> None:
        super().__init__()
        inner = heads * self.HEAD_DIM
        self.heads = heads
        self.norm1 = operations.LayerNorm(width)
        self.norm2 = operations.LayerNorm(width)
        self.to_q = operations.Linear(width, inner, bias=False)
        self.to_kv = operations.Linear(width, inner * 2, bias=False)
        self.to_out = operations.Linear(inner, width, bias=False)

    def forward(self, features: Tensor, latents: Tensor) -> Tensor:
        """The latents after attention to the features and to themselves: (crops, tokens, width)."""
        features, latents = self.norm1(features), self.norm2(latents)
        key, value = self.to_kv(torch.cat([features, latents], dim=1)).chunk(2, dim=-1)
        heads = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.to_q(latents), key, value))
        return self.to_out(functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))


def _feed_forward(width: int, operations: Any) -> nn.Sequential:
    return nn.Sequential(
        operations.LayerNorm(width),
        operations.Linear(width, width * 4, bias=False),
        nn.GELU(),
        operations.Linear(width * 4, width, bias=False),
    )
