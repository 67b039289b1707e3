"""The sizes of a masked transformer and of its VQ model, read off the shapes in their files.

What shapes do not tell (heads, groups, the width of an embedded number) is that of the published files, unless a file
carries its `config`, as diffusers writes it, in its metadata.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

HEAD = 64
"""Channels of a head in the published transformers."""
MICRO = 256
"""Channels of one embedded number in the published transformers."""
NUMBERS = 5
"""Width, height, crop (two) and aesthetic score."""
GROUPS = 32

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class TransformerSettings:
    """The sizes of a masked transformer."""

    hidden: int
    layers: int
    heads: int
    feed_forward: int
    channels: int
    """Of the blocks around the transformer."""
    blocks: int
    """How many there are on each side."""
    block_heads: int
    embedding: int
    """Channels of an embedded token."""
    vocabulary: int
    codebook: int
    text: int
    """Channels of the text's tokens."""
    vector: int
    """Channels of the pooled text and the embedded numbers."""
    micro: int = MICRO
    resamples: bool = False
    """Whether the transformer sees half of the tokens a side (the published 512 pixel model)."""
    bias: bool = False
    norm_eps: float = 1e-6

    @property
    def mask_token(self) -> int:
        """The token that stands for a masked one: the last of the vocabulary."""
        return self.vocabulary - 1

    @property
    def pooled(self) -> int:
        """Channels of the pooled text."""
        return self.vector - NUMBERS * self.micro


@dataclass(frozen=True)
class VQSettings:
    """The sizes of a VQ model."""

    channels: tuple[int, ...]
    """Of each level, from pixels to tokens."""
    blocks: int
    """In each level of the encoder; the decoder has one more."""
    latent: int
    code: int
    """Channels of a token in the codebook."""
    codebook: int
    colours: int = 3
    groups: int = GROUPS
    attends: bool = False
    """Whether its middle has an attention; the published one has none."""

    @property
    def pixels(self) -> int:
        """Of a token, a side."""
        return 2 ** (len(self.channels) - 1)


def transformer_settings(shapes: Shapes, config: Mapping[str, Any] | None = None) -> TransformerSettings:
    """Reads the sizes of a transformer. Raises KeyError if a tensor is missing."""
    known = config or {}
    hidden, text = shapes["encoder_proj.weight"]
    vocabulary, embedding = shapes["embed.embeddings.weight"]
    channels = shapes["embed.conv.weight"][0]
    return TransformerSettings(
        hidden=hidden,
        layers=count(shapes, "transformer_layers"),
        heads=known.get("num_attention_heads", max(hidden // HEAD, 1)),
        feed_forward=shapes["transformer_layers.0.ff.net.2.weight"][1],
        channels=channels,
        blocks=count(shapes, "down_block.res_blocks"),
        block_heads=known.get("block_num_heads", max(channels // HEAD, 1)),
        embedding=embedding,
        vocabulary=vocabulary,
        codebook=shapes["mlm_layer.conv2.weight"][0],
        text=text,
        vector=shapes["cond_embed.linear_1.weight"][1],
        micro=known.get("micro_cond_encode_dim", MICRO),
        resamples="down_block.downsample.conv.weight" in shapes,
        bias="encoder_proj.bias" in shapes,
        norm_eps=known.get("layer_norm_eps", 1e-6),
    )


def vq_settings(shapes: Shapes, config: Mapping[str, Any] | None = None) -> VQSettings:
    """Reads the sizes of a VQ model. Raises KeyError if a tensor is missing."""
    known = config or {}
    codebook, code = shapes["quantize.embedding.weight"]
    levels = range(count(shapes, "encoder.down_blocks"))
    return VQSettings(
        channels=tuple(shapes[f"encoder.down_blocks.{level}.resnets.0.conv2.weight"][0] for level in levels),
        blocks=count(shapes, "encoder.down_blocks.0.resnets"),
        latent=shapes["encoder.conv_out.weight"][0],
        code=code,
        codebook=codebook,
        colours=shapes["encoder.conv_in.weight"][1],
        groups=known.get("norm_num_groups", GROUPS),
        attends="encoder.mid_block.attentions.0.to_q.weight" in shapes,
    )


def count(names: Iterable[str], prefix: str) -> int:
    """How many numbered modules there are under a name."""
    found = (re.match(rf"{re.escape(prefix)}\.(\d+)\.", name) for name in names)
    return len({match[1] for match in found if match})
