"""What the transformer of aMUSEd is built from. The tensors have the names of the published files."""

from __future__ import annotations

from typing import Any

import comfy.ops
import torch
from torch import Tensor, nn
from torch.nn import functional

from .attention import Attention
from .settings import TransformerSettings


class RowNorm(nn.Module):
    """A norm whose scale and shift come from the conditioning vector: RMS norm, or layer norm before the last part."""

    def __init__(self, s: TransformerSettings, centred: bool, ops: Any, **place: Any) -> None:
        super().__init__()
        affine: dict[str, Any] = {"eps": s.norm_eps, "elementwise_affine": True, **place}
        self.norm = ops.LayerNorm(s.hidden, bias=s.bias, **affine) if centred else ops.RMSNorm(s.hidden, **affine)
        self.linear = ops.Linear(s.hidden, 2 * s.hidden, bias=s.bias, **place)

    def forward(self, hidden: Tensor, vector: Tensor) -> Tensor:
        scale, shift = self.linear(functional.silu(vector))[:, None].chunk(2, dim=-1)
        return self.norm(hidden) * (1 + scale) + shift


class GatedProjection(nn.Module):
    """A projection whose second half gates the first."""

    def __init__(self, channels: int, inner: int, bias: bool, ops: Any, **place: Any) -> None:
        super().__init__()
        self.proj = ops.Linear(channels, 2 * inner, bias=bias, **place)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden, gate = self.proj(hidden).chunk(2, dim=-1)
        return hidden * functional.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, s: TransformerSettings, ops: Any, **place: Any) -> None:
        super().__init__()
        last = ops.Linear(s.feed_forward, s.hidden, bias=s.bias, **place)
        self.net = nn.ModuleList([GatedProjection(s.hidden, s.feed_forward, s.bias, ops, **place), nn.Identity(), last])

    def forward(self, hidden: Tensor) -> Tensor:
        return self.net[2](self.net[0](hidden))


class TransformerLayer(nn.Module):
    """Self-attention, cross-attention to the text, feed forward; each after a norm with the conditioning vector."""

    def __init__(self, s: TransformerSettings, ops: Any, **place: Any) -> None:
        super().__init__()
        self.norm1 = RowNorm(s, False, ops, **place)
        self.attn1 = Attention(s.hidden, s.hidden, s.heads, s.bias, ops, **place)
        self.norm2 = RowNorm(s, False, ops, **place)
        self.attn2 = Attention(s.hidden, s.hidden, s.heads, s.bias, ops, **place)
        self.norm3 = RowNorm(s, True, ops, **place)
        self.ff = FeedForward(s, ops, **place)

    def forward(self, hidden: Tensor, context: Tensor, vector: Tensor, options: dict[str, Any]) -> Tensor:
        normed = self.norm1(hidden, vector)
        hidden = hidden + self.attn1.patched("attn1", normed, normed, options)
        for patch in options.get("patches", {}).get("middle_patch", ()):
            hidden = patch(hidden, options)
        hidden = hidden + self.attn2.patched("attn2", self.norm2(hidden, vector), context, options)
        return hidden + self.ff(self.norm3(hidden, vector))


class ResponseNorm(nn.Module):
    """Global response normalisation of ConvNeXt V2 (arXiv:2301.00808), for (rows, height, width, channels)."""

    def __init__(self, channels: int, **place: Any) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(1, 1, 1, channels, **place))
        self.beta = nn.Parameter(torch.empty(1, 1, 1, channels, **place))

    def forward(self, hidden: Tensor) -> Tensor:
        response = torch.linalg.vector_norm(hidden, dim=(1, 2), keepdim=True)
        response = response / (response.mean(dim=-1, keepdim=True) + 1e-6)
        gamma, beta = (comfy.ops.cast_to_input(weight, hidden) for weight in (self.gamma, self.beta))
        return gamma * (hidden * response) + beta + hidden


class ConvNextBlock(nn.Module):
    def __init__(self, s: TransformerSettings, ops: Any, **place: Any) -> None:
        super().__init__()
        c, inner = s.channels, 4 * s.channels
        self.depthwise = ops.Conv2d(c, c, 3, padding=1, groups=c, bias=s.bias, **place)
        self.norm = ops.RMSNorm(c, eps=s.norm_eps, elementwise_affine=True, **place)
        self.channelwise_linear_1 = ops.Linear(c, inner, bias=s.bias, **place)
        self.channelwise_norm = ResponseNorm(inner, **place)
        self.channelwise_linear_2 = ops.Linear(inner, c, bias=s.bias, **place)
        self.cond_embeds_mapper = ops.Linear(s.hidden, 2 * c, bias=s.bias, **place)

    def forward(self, hidden: Tensor, vector: Tensor) -> Tensor:
        inner = self.norm(self.depthwise(hidden).movedim(1, -1))
        inner = self.channelwise_norm(functional.gelu(self.channelwise_linear_1(inner)))
        hidden = hidden + self.channelwise_linear_2(inner).movedim(-1, 1)
        scale, shift = self.cond_embeds_mapper(functional.silu(vector))[:, :, None, None].chunk(2, dim=1)
        return hidden * (1 + scale) + shift


class TextBlock(nn.Module):
    """Two attentions of the picture's tokens to the text. Patches do not act here."""

    def __init__(self, s: TransformerSettings, ops: Any, **place: Any) -> None:
        super().__init__()
        c = s.channels
        mapped = s.hidden != c
        self.kv_mapper = ops.Linear(s.hidden, c, bias=s.bias, **place) if mapped else None
        self.norm1 = ops.RMSNorm(c, eps=1e-6, elementwise_affine=True, **place)
        self.attn1 = Attention(c, c, s.block_heads, s.bias, ops, **place)
        self.norm2 = ops.RMSNorm(c, eps=1e-6, elementwise_affine=True, **place)
        self.attn2 = Attention(c, c, s.block_heads, s.bias, ops, **place)

    def forward(self, hidden: Tensor, context: Tensor, options: dict[str, Any]) -> Tensor:
        if self.kv_mapper is not None:
            context = self.kv_mapper(functional.silu(context))
        hidden = hidden + self.attn1(self.norm1(hidden), context, options)
        return hidden + self.attn2(self.norm2(hidden), context, options)


class Resample(nn.Module):
    """Half or twice the tokens a side."""

    def __init__(self, s: TransformerSettings, up: bool, ops: Any, **place: Any) -> None:
        super().__init__()
        conv = ops.ConvTranspose2d if up else ops.Conv2d
        self.up = up
        self.norm = ops.RMSNorm(s.channels, eps=s.norm_eps, elementwise_affine=True, **place)
        self.conv = conv(s.channels, s.channels, 2, stride=2, bias=s.bias, **place)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = self.norm(hidden.movedim(1, -1)).movedim(-1, 1)
        return self.conv(hidden if self.up else functional.pad(hidden, (0, 1, 0, 1)))


class ResampledBlocks(nn.Module):
    """The blocks before the transformer, or after it."""

    def __init__(self, s: TransformerSettings, down: bool, up: bool, ops: Any, **place: Any) -> None:
        super().__init__()
        self.downsample = Resample(s, False, ops, **place) if down else None
        self.res_blocks = nn.ModuleList([ConvNextBlock(s, ops, **place) for _ in range(s.blocks)])
        self.attention_blocks = nn.ModuleList([TextBlock(s, ops, **place) for _ in range(s.blocks)])
        self.upsample = Resample(s, True, ops, **place) if up else None

    def forward(self, hidden: Tensor, context: Tensor, vector: Tensor, options: dict[str, Any]) -> Tensor:
        if self.downsample is not None:
            hidden = self.downsample(hidden)
        for block, attention in zip(self.res_blocks, self.attention_blocks, strict=True):
            hidden = block(hidden, vector)
            hidden = as_picture(attention(as_tokens(hidden), context, options), hidden)
        return hidden if self.upsample is None else self.upsample(hidden)


class TokenEmbedding(nn.Module):
    def __init__(self, s: TransformerSettings, ops: Any, **place: Any) -> None:
        super().__init__()
        self.embeddings = ops.Embedding(s.vocabulary, s.embedding, **place)
        self.layer_norm = ops.RMSNorm(s.embedding, eps=s.norm_eps, elementwise_affine=True, **place)
        self.conv = ops.Conv2d(s.embedding, s.channels, 1, bias=s.bias, **place)

    def forward(self, tokens: Tensor, dtype: torch.dtype) -> Tensor:
        embedded = self.layer_norm(self.embeddings(tokens, out_dtype=dtype))
        return self.conv(embedded.movedim(-1, 1))


class Logits(nn.Module):
    def __init__(self, s: TransformerSettings, ops: Any, **place: Any) -> None:
        super().__init__()
        self.conv1 = ops.Conv2d(s.channels, s.embedding, 1, bias=s.bias, **place)
        self.layer_norm = ops.RMSNorm(s.embedding, eps=s.norm_eps, elementwise_affine=True, **place)
        self.conv2 = ops.Conv2d(s.embedding, s.codebook, 1, bias=s.bias, **place)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.conv2(self.layer_norm(self.conv1(hidden).movedim(1, -1)).movedim(-1, 1))


class VectorEmbedding(nn.Module):
    def __init__(self, s: TransformerSettings, ops: Any, **place: Any) -> None:
        super().__init__()
        self.linear_1 = ops.Linear(s.vector, s.hidden, bias=s.bias, **place)
        self.linear_2 = ops.Linear(s.hidden, s.hidden, bias=s.bias, **place)

    def forward(self, vector: Tensor) -> Tensor:
        return self.linear_2(functional.silu(self.linear_1(vector)))


def as_tokens(hidden: Tensor) -> Tensor:
    return hidden.flatten(2).mT


def as_picture(tokens: Tensor, like: Tensor) -> Tensor:
    return tokens.mT.reshape(len(tokens), -1, *like.shape[2:])
