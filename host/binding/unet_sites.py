"""The attention layers of ComfyUI's UNet or of a masked transformer, and their modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...attention.engine.call import AttentionKind, AttentionSite, BlockPart
from ..masked.transformer import MaskedTransformer

SLOT: Mapping[AttentionKind, str] = {"self": "attn1", "cross": "attn2"}
"""ComfyUI's name for each kind of attention."""


def attention_sites(unet: Any) -> tuple[AttentionSite, ...]:
    """Every attention layer of a UNet or of a masked transformer, in the order it runs them."""
    if isinstance(unet, MaskedTransformer):
        kinds: tuple[AttentionKind, ...] = ("self", "cross")
        return tuple(AttentionSite(kind, "middle", layer) for layer in range(unet.settings.layers) for kind in kinds)
    parts: list[tuple[BlockPart, Sequence[Any]]] = [
        ("input", unet.input_blocks),
        ("middle", [] if unet.middle_block is None else [unet.middle_block]),
        ("output", unet.output_blocks),
    ]
    return tuple(
        AttentionSite(kind, part, number, depth)
        for part, blocks in parts
        for number, block in enumerate(blocks)
        for layer in block
        for depth, transformer in enumerate(getattr(layer, "transformer_blocks", ()))
        for kind in (("self", "cross") if transformer.attn2 is not None else ("self",))
    )


def attention_layer(unet: Any, site: AttentionSite) -> Any:
    """The module at a site, with its to_q, to_k and to_v."""
    if isinstance(unet, MaskedTransformer):
        return getattr(unet.transformer_layers[site.number], SLOT[site.kind])
    blocks = {"input": unet.input_blocks, "middle": [unet.middle_block], "output": unet.output_blocks}[site.part]
    transformer = next(layer for layer in blocks[site.number] if hasattr(layer, "transformer_blocks"))
    return getattr(transformer.transformer_blocks[site.depth], SLOT[site.kind])
