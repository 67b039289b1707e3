"""Flux's transformer as plain layers, for training: the host's own class adds in place, which no gradient survives.

Names and shapes of the weights are the published ones, so that the host opens what is trained here.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from comfy.ldm.flux.layers import timestep_embedding
from torch import Tensor, nn
from torch.nn import functional

from .attention import attend_by_heads
from .networks import zero_

TIME_WIDTH = 256
MLP_RATIO = 4


@dataclass(frozen=True)
class FluxShape:
    """What differs from Flux: the widths and how many blocks."""

    hidden_size: int = 192
    num_heads: int = 6
    depth: int = 2
    depth_single_blocks: int = 4
    axes_dim: tuple[int, ...] = (8, 12, 12)
    theta: int = 10_000
    patch_size: int = 2
    in_channels: int = 4
    out_channels: int = 4
    context_in_dim: int = 64
    vec_in_dim: int = 64

    def config(self) -> dict[str, Any]:
        """The keyword arguments of the host's Flux."""
        own = {"mlp_ratio": float(MLP_RATIO), "qkv_bias": True, "guidance_embed": False, "txt_ids_dims": []}
        return {"image_model": "flux", **asdict(self), "axes_dim": list(self.axes_dim), **own}


class FluxTransformer(nn.Module):
    """Latents, time, context and pooled text to a velocity, as the host's Flux without guidance."""

    def __init__(self, shape: FluxShape) -> None:
        super().__init__()
        self.shape = shape
        width, patch = shape.hidden_size, shape.patch_size**2
        self.img_in = nn.Linear(shape.in_channels * patch, width)
        self.time_in = _Embedder(TIME_WIDTH, width)
        self.vector_in = _Embedder(shape.vec_in_dim, width)
        self.txt_in = nn.Linear(shape.context_in_dim, width)
        self.double_blocks = nn.ModuleList(_DoubleBlock(width, shape.num_heads) for _ in range(shape.depth))
        self.single_blocks = nn.ModuleList(
            _SingleBlock(width, shape.num_heads) for _ in range(shape.depth_single_blocks)
        )
        self.final_layer = _LastLayer(width, shape.out_channels * patch)

    def forward(
        self, latents: Tensor, times: Tensor, context: Tensor, pooled: Tensor, states: list[Tensor] | None = None
    ) -> Tensor:
        """The velocity (rows, channels, height, width).

        `latents` are (rows, channels, height, width) with even sides, `times` (rows,) in 0..1, `context` (rows, tokens,
        context_in_dim), `pooled` (rows, vec_in_dim). `states` receives the image's tokens behind each single block.
        """
        rows, channels, height, width = latents.shape
        side = self.shape.patch_size
        patches = latents.reshape(rows, channels, height // side, side, width // side, side)
        image = self.img_in(patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2))
        text = self.txt_in(context)
        turns = self._turns(text.shape[1], height // side, width // side, latents.device)
        vector = functional.silu(self.time_in(timestep_embedding(times, TIME_WIDTH)) + self.vector_in(pooled))
        for block in self.double_blocks:
            image, text = block(image, text, vector, turns)
        joined = torch.cat([text, image], dim=1)
        for block in self.single_blocks:
            joined = block(joined, vector, turns)
            if states is not None:
                states.append(joined[:, text.shape[1] :])
        made = self.final_layer(joined[:, text.shape[1] :], vector)
        made = made.view(rows, height // side, width // side, channels, side, side)
        return made.permute(0, 3, 1, 4, 2, 5).reshape(latents.shape)

    def _turns(self, words: int, height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Cosine and sine of each token's rotary angles: (tokens, head_dim / 2) each; words stand at 0, 0."""
        rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
        places = torch.stack([torch.zeros(height, width, device=device), *torch.meshgrid(rows, columns, indexing="ij")])
        places = torch.cat([torch.zeros(3, words, device=device), places.flatten(1)], dim=1)
        angles = []
        for place, size in zip(places, self.shape.axes_dim, strict=True):
            speeds = self.shape.theta ** -(torch.arange(0, size, 2, device=device, dtype=torch.float64) / size)
            angles.append(place[:, None] * speeds)
        turned = torch.cat(angles, dim=1)
        return turned.cos().float(), turned.sin().float()


class _Embedder(nn.Module):
    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.in_layer, self.out_layer = nn.Linear(width_in, width), nn.Linear(width, width)

    def forward(self, vector: Tensor) -> Tensor:
        return self.out_layer(functional.silu(self.in_layer(vector)))


class _Norms(nn.Module):
    """RMS norms of queries and keys."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.query_norm, self.key_norm = nn.RMSNorm(head_dim, eps=1e-6), nn.RMSNorm(head_dim, eps=1e-6)


class _Modulation(nn.Module):
    """Shifts, scales and gates of the vector, three of each thing modulated; silent at first."""

    def __init__(self, width: int, things: int) -> None:
        super().__init__()
        self.things = things
        self.lin = nn.Linear(width, 3 * things * width)
        zero_(self.lin)

    def forward(self, vector: Tensor) -> tuple[Tensor, ...]:
        return self.lin(vector)[:, None].chunk(3 * self.things, dim=-1)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.norm, self.proj = nn.Linear(width, 3 * width), _Norms(width // heads), nn.Linear(width, width)


class _DoubleBlock(nn.Module):
    """Image and text with weights of their own, looking at each other."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.img_mod, self.txt_mod = _Modulation(width, 2), _Modulation(width, 2)
        self.img_attn, self.txt_attn = _Attention(width, heads), _Attention(width, heads)
        self.img_mlp, self.txt_mlp = _mlp(width), _mlp(width)

    def forward(
        self, image: Tensor, text: Tensor, vector: Tensor, turns: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        streams = (text, self.txt_mod(vector), self.txt_attn), (image, self.img_mod(vector), self.img_attn)
        parts = [_heads(a.qkv(_modulated(x, m[0], m[1])), a.heads, a.norm) for x, m, a in streams]
        query, key, value = (torch.cat(both, dim=2) for both in zip(*parts, strict=True))
        looked = _look(query, key, value, turns).split([text.shape[1], image.shape[1]], dim=1)
        mlps = self.txt_mlp, self.img_mlp
        text, image = (
            _through(x + m[2] * a.proj(seen), m[3:], mlp)
            for (x, m, a), seen, mlp in zip(streams, looked, mlps, strict=True)
        )
        return image, text


class _SingleBlock(nn.Module):
    """Text and image in one sequence; attention and feed-forward side by side."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.linear1 = nn.Linear(width, (3 + MLP_RATIO) * width)
        self.linear2 = nn.Linear((1 + MLP_RATIO) * width, width)
        self.norm, self.modulation = _Norms(width // heads), _Modulation(width, 1)

    def forward(self, joined: Tensor, vector: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
        shift, scale, gate = self.modulation(vector)
        width = joined.shape[2]
        qkv, inner = self.linear1(_modulated(joined, shift, scale)).split([3 * width, MLP_RATIO * width], dim=-1)
        looked = _look(*_heads(qkv, self.heads, self.norm), turns)
        return joined + gate * self.linear2(torch.cat([looked, functional.gelu(inner, approximate="tanh")], dim=2))


class _LastLayer(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, out)
        self.adaLN_modulation = nn.Sequential(nn.Identity(), nn.Linear(width, 2 * width))
        zero_(self.linear)
        zero_(self.adaLN_modulation[1])

    def forward(self, tokens: Tensor, vector: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(vector)[:, None].chunk(2, dim=-1)
        return self.linear(_modulated(tokens, shift, scale))


def _mlp(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, MLP_RATIO * width), nn.GELU(approximate="tanh"), nn.Linear(MLP_RATIO * width, width)
    )


def _through(tokens: Tensor, modulation: tuple[Tensor, ...], mlp: nn.Module) -> Tensor:
    shift, scale, gate = modulation
    return tokens + gate * mlp(_modulated(tokens, shift, scale))


def _modulated(tokens: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return functional.layer_norm(tokens, tokens.shape[-1:], eps=1e-6) * (1 + scale) + shift


def _heads(qkv: Tensor, heads: int, norm: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, normalised: (rows, heads, tokens, head_dim)."""
    query, key, value = qkv.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    return norm.query_norm(query.float()), norm.key_norm(key.float()), value


def _look(query: Tensor, key: Tensor, value: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """Attention after turning queries and keys: (rows, tokens, heads * head_dim)."""
    query, key = (_turned(part, turns).to(value.dtype) for part in (query, key))
    return attend_by_heads(query, key, value)


def _turned(vectors: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """Each pair of neighbouring numbers turned by its angle."""
    cosine, sine = turns
    even, odd = vectors[..., 0::2], vectors[..., 1::2]
    return torch.stack([even * cosine - odd * sine, even * sine + odd * cosine], dim=-1).flatten(3)
