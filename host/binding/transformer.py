"""What a diffusion transformer is, read off the host's module: its family, its sites, and where its tokens stand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from ...attention.engine.call import AttentionKind, AttentionSite, BlockPart, Rotary
from ...attention.families.transformers import KINDS, NAMES, UNREACHED, TransformerKind

REFERENCES = "reference_image_num_tokens"
"""The option by which the host tells the tokens of each reference picture of an editing model."""


@dataclass(frozen=True)
class Transformer:
    """One diffusion transformer."""

    kind: TransformerKind
    name: str
    """Its family, as people know it."""
    patch: int
    """Latent pixels to a side of a token."""
    rotary: Rotary | None
    attentions: Mapping[tuple[BlockPart, int], tuple[AttentionKind, ...]]
    """What attends in each of its blocks, in the order it runs them."""
    padded_to: int = 1
    """Tokens of the picture are filled up to a multiple of so many."""
    widest: int | None = None
    """How many tokens a side of a picture may have, where positions are learnt."""

    @cached_property
    def sites(self) -> tuple[AttentionSite, ...]:
        """The attentions of its blocks, in the order it runs them; two of one kind in a block are one site."""
        named = (AttentionSite(kind, *block) for block, kinds in self.attentions.items() for kind in kinds)
        return tuple(dict.fromkeys(named))

    @property
    def blocks(self) -> int:
        """How many blocks it has."""
        return len(self.attentions)

    def picture_tokens(self, x: Tensor) -> tuple[int, int, int]:
        """Frames, height and width in tokens of latents (rows, channels, [frames,] height, width)."""
        frames = x.shape[-3] if x.ndim == 5 else 1
        return frames, math.ceil(x.shape[-2] / self.patch), math.ceil(x.shape[-1] / self.patch)

    def places_before(self, text: Tensor | None) -> int:
        """How many places the picture's first axis begins behind those of a text (rows, tokens, channels)."""
        if text is None or not self.kind.behind_text:
            return 0
        return math.ceil(text.shape[1] / self.padded_to) * self.padded_to

    def image(self, site: AttentionSite, tokens: int, own: int, options: Mapping[str, Any]) -> slice:
        """Which of so many tokens are the `own` ones of the picture."""
        if site.kind == "cross":
            return slice(0, own)
        behind = sum(options.get(REFERENCES, ())) if self.kind.references == "behind" else 0
        padding = -own % self.padded_to
        end = tokens - behind - padding
        return slice(end - own, end)


def transformer_of(model: Any) -> Transformer | None:
    """The transformer in a host's model (what MODEL keeps as `model`); None for another network."""
    module = model.diffusion_model
    kind = KINDS.get(_class_of(module))
    if kind is None:
        return None
    padded_to = getattr(module, "pad_tokens_multiple", None) or 1
    name = "Z-Image" if padded_to > 1 else NAMES.get(type(model).__name__, kind.name)
    widest = module.pos_embed_max_size if kind.pairs == "none" else None
    return Transformer(
        kind, name, _patch_size(module), _rotary(module, kind), _attentions(module, kind), padded_to, widest
    )


def unreached(model: Any) -> str | None:
    """The family of a transformer whose attention no patch can reach; None for any other model."""
    return UNREACHED.get(_class_of(model.diffusion_model))


def _class_of(module: Any) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _attentions(module: Any, kind: TransformerKind) -> dict[tuple[BlockPart, int], tuple[AttentionKind, ...]]:
    return {
        (part, number): (*kind.attentions, *_once_more(block))
        for part, attribute in kind.blocks.items()
        for number, block in enumerate(getattr(module, attribute))
    }


def _once_more(block: Any) -> tuple[AttentionKind, ...]:
    """What attends in this block after all that does in every block of its kind."""
    if getattr(getattr(block, "x_block", None), "x_block_self_attn", False):
        return ("self",)  # some blocks of SD 3.5
    # Wan's image to video attends to a picture beside the text.
    return ("cross",) if hasattr(getattr(block, "cross_attn", None), "k_img") else ()


def _patch_size(module: Any) -> int:
    size = next(getattr(module, name) for name in ("patch_size", "patch", "patch_spatial") if hasattr(module, name))
    return int(size if isinstance(size, int) else size[-1])


def _rotary(module: Any, kind: TransformerKind) -> Rotary | None:
    if kind.pairs == "none":
        return None
    for name in ("pe_embedder", "rope_embedder"):
        axes = getattr(getattr(module, name, None), "axes_dim", None)
        if axes is not None:
            return Rotary(tuple(axes), kind.pairs, float(getattr(module, name).theta))
    head = module.model_channels // module.num_heads
    side = head // 6 * 2
    return Rotary((head - 2 * side, side, side), kind.pairs)
