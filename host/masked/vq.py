"""The VQ model of aMUSEd: a picture as tokens of a codebook, and back. Its tensors have the published names."""

from __future__ import annotations

import comfy.ops
import torch
from comfy.ldm.modules.diffusionmodules.model import vae_attention
from torch import Tensor, nn
from torch.nn import functional

from ...attention.functional.masked_tokens import one_hot
from .settings import VQSettings

ops = comfy.ops.disable_weight_init
EPS = 1e-6


class Resnet(nn.Module):
    def __init__(self, given: int, made: int, groups: int) -> None:
        super().__init__()
        self.norm1 = ops.GroupNorm(groups, given, eps=EPS)
        self.conv1 = ops.Conv2d(given, made, 3, padding=1)
        self.norm2 = ops.GroupNorm(groups, made, eps=EPS)
        self.conv2 = ops.Conv2d(made, made, 3, padding=1)
        self.conv_shortcut = None if given == made else ops.Conv2d(given, made, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        inner = self.conv1(functional.silu(self.norm1(hidden)))
        inner = self.conv2(functional.silu(self.norm2(inner)))
        return inner + (hidden if self.conv_shortcut is None else self.conv_shortcut(hidden))


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = ops.Conv2d(channels, channels, 3, stride=2)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.conv(functional.pad(hidden, (0, 1, 0, 1)))


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = ops.Conv2d(channels, channels, 3, padding=1)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.conv(functional.interpolate(hidden, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The blocks of one resolution."""

    def __init__(self, given: int, made: int, blocks: int, groups: int, down: bool = False, up: bool = False) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([Resnet(made if i else given, made, groups) for i in range(blocks)])
        self.downsamplers = nn.ModuleList([Downsample(made)] if down else [])
        self.upsamplers = nn.ModuleList([Upsample(made)] if up else [])

    def forward(self, hidden: Tensor) -> Tensor:
        for layer in (*self.resnets, *self.downsamplers, *self.upsamplers):
            hidden = layer(hidden)
        return hidden


class PictureAttention(nn.Module):
    """Attention of one head over the whole picture."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = ops.GroupNorm(groups, channels, eps=EPS)
        self.to_q, self.to_k, self.to_v = (ops.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.ModuleList([ops.Linear(channels, channels)])
        self.attend = vae_attention()

    def forward(self, hidden: Tensor) -> Tensor:
        normed = self.group_norm(hidden).movedim(1, -1)
        query, key, value = (to(normed).movedim(-1, 1).contiguous() for to in (self.to_q, self.to_k, self.to_v))
        return hidden + self.to_out[0](self.attend(query, key, value).movedim(1, -1)).movedim(-1, 1)


class Middle(nn.Module):
    def __init__(self, channels: int, groups: int, attends: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([Resnet(channels, channels, groups) for _ in range(2)])
        self.attentions = nn.ModuleList([PictureAttention(channels, groups)] if attends else [])

    def forward(self, hidden: Tensor) -> Tensor:
        for layer in (self.resnets[0], *self.attentions, self.resnets[1]):
            hidden = layer(hidden)
        return hidden


class Encoder(nn.Module):
    def __init__(self, s: VQSettings) -> None:
        super().__init__()
        last = len(s.channels) - 1
        given = (s.channels[0], *s.channels)
        self.conv_in = ops.Conv2d(s.colours, s.channels[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            [Level(given[i], made, s.blocks, s.groups, down=i < last) for i, made in enumerate(s.channels)]
        )
        self.mid_block = Middle(s.channels[-1], s.groups, s.attends)
        self.conv_norm_out = ops.GroupNorm(s.groups, s.channels[-1], eps=EPS)
        self.conv_out = ops.Conv2d(s.channels[-1], s.latent, 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        hidden = self.conv_in(pixels)
        for level in self.down_blocks:
            hidden = level(hidden)
        return self.conv_out(functional.silu(self.conv_norm_out(self.mid_block(hidden))))


class Decoder(nn.Module):
    def __init__(self, s: VQSettings) -> None:
        super().__init__()
        channels = s.channels[::-1]
        last = len(channels) - 1
        given = (channels[0], *channels)
        self.conv_in = ops.Conv2d(s.latent, channels[0], 3, padding=1)
        self.mid_block = Middle(channels[0], s.groups, s.attends)
        self.up_blocks = nn.ModuleList(
            [Level(given[i], made, s.blocks + 1, s.groups, up=i < last) for i, made in enumerate(channels)]
        )
        self.conv_norm_out = ops.GroupNorm(s.groups, channels[-1], eps=EPS)
        self.conv_out = ops.Conv2d(channels[-1], s.colours, 3, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        hidden = self.mid_block(self.conv_in(latent))
        for level in self.up_blocks:
            hidden = level(hidden)
        return self.conv_out(functional.silu(self.conv_norm_out(hidden)))


class Codebook(nn.Module):
    def __init__(self, s: VQSettings) -> None:
        super().__init__()
        self.embedding = ops.Embedding(s.codebook, s.code)

    def nearest(self, codes: Tensor) -> Tensor:
        """The token (rows, height, width) whose code is nearest to each of `codes` (rows, code, height, width)."""
        rows, _, height, width = codes.shape
        # By the module, not by its weight, which the host may keep elsewhere.
        known = self.embedding(torch.arange(self.embedding.num_embeddings, device=codes.device), out_dtype=codes.dtype)
        return torch.cdist(codes.movedim(1, -1).flatten(0, 2), known).argmin(dim=1).reshape(rows, height, width)

    def codes(self, tokens: Tensor, known: Tensor, dtype: torch.dtype) -> Tensor:
        """The codes of tokens (rows, height, width), zero where they are not known."""
        found = self.embedding(tokens, out_dtype=dtype) * known[..., None]
        return found.movedim(-1, 1)


class VQModel(nn.Module):
    """Pictures (rows, 3, height, width) of 0 to 1 to one-hot tokens (rows, codebook, height, width), and back."""

    def __init__(self, settings: VQSettings) -> None:
        super().__init__()
        self.settings = settings
        self.encoder = Encoder(settings)
        self.quant_conv = ops.Conv2d(settings.latent, settings.code, 1)
        self.quantize = Codebook(settings)
        self.post_quant_conv = ops.Conv2d(settings.code, settings.latent, 1)
        self.decoder = Decoder(settings)

    def encode(self, pixels: Tensor) -> Tensor:
        tokens = self.quantize.nearest(self.quant_conv(self.encoder(pixels)))
        return one_hot(tokens, self.settings.codebook, pixels.dtype)

    def decode(self, latent: Tensor) -> Tensor:
        known = latent.any(dim=1)
        codes = self.quantize.codes(latent.argmax(dim=1), known, latent.dtype)
        return self.decoder(self.post_quant_conv(codes))
