"""Flux's blocks written out on a page with an IP-Adapter in them, to set the patches against.

They take the weights of the host's blocks. What an adapter adds follows the published code: InstantX's attention
processor (huggingface.co/InstantX/FLUX.1-dev-IP-Adapter) and diffusers' FluxIPAdapterAttnProcessor, for XLabs' files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear, scaled_dot_product_attention

from .transformers import TransformerFamily


@dataclass(frozen=True, eq=False)
class WrittenAdapter:
    """An adapter file, and the tokens that its projector gives for the rows of every call."""

    tensors: Mapping[str, Tensor]
    tokens: Tensor  # (rows or 1, image tokens, text width)
    scale: float
    blocks: Sequence[str] | None = None
    """Those it acts in, such as `double.0`; all if left out."""
    weight_of_tokens: Callable[[int], Tensor] | None = None
    """A mask for so many asking tokens, (tokens, 1)."""

    @property
    def is_xlabs(self) -> bool:
        return "ip_adapter_proj_model.proj.weight" in self.tensors

    def found(self, part: str, number: int, doubles: int, query: Tensor) -> Tensor | float:
        """s * A(Q, K', V') for queries (rows, heads, tokens, head_dim) before their rotation."""
        if self.blocks is not None and f"{part}.{number}" not in self.blocks:
            return 0.0
        heads = query.shape[1]
        key, value = (self.projected(which, part, number, doubles, heads) for which in "kv")
        seen = scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        area = 1.0 if self.weight_of_tokens is None else self.weight_of_tokens(seen.shape[1])
        return self.scale * area * seen

    def projected(self, which: str, part: str, number: int, doubles: int, heads: int) -> Tensor:
        """Keys or values of the image tokens, (rows or 1, heads, image tokens, head_dim)."""
        if self.is_xlabs:
            name = f"double_blocks.{number}.processor.ip_adapter_double_stream_{which}_proj"
            flat = linear(self.tokens, self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"])
            return flat.unflatten(-1, (heads, -1)).transpose(1, 2)
        place = number if part == "double" else doubles + number
        flat = linear(self.tokens, self.tensors[f"ip_adapter.{place}.to_{which}_ip.weight"])
        split = flat.unflatten(-1, (heads, -1)).transpose(1, 2)
        if which == "v":  # InstantX's own code normalises the keys alone
            return split
        return split * torch.rsqrt(split.pow(2).mean(-1, keepdim=True) + 1e-5)


def rewritten(family: TransformerFamily, adapters: Sequence[WrittenAdapter]) -> Any:
    """A MODEL of its own whose blocks are those of this page."""
    model = family.model()
    network = model.model.diffusion_model
    doubles = len(network.double_blocks)
    for number, block in enumerate(network.double_blocks):
        block.forward = double_block(block, number, doubles, adapters)
    for number, block in enumerate(network.single_blocks):
        block.forward = single_block(block, number, doubles, adapters)
    return model


def double_block(block: Any, number: int, doubles: int, adapters: Sequence[WrittenAdapter]) -> Callable[..., Any]:
    def forward(img: Tensor, txt: Tensor, vec: Any, pe: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
        if block.modulation:
            (img1, img2), (txt1, txt2) = block.img_mod(vec), block.txt_mod(vec)
        else:
            (img1, img2), (txt1, txt2) = vec
        img_q, img_k, img_v = heads_of(block.img_attn, modulated(img, img1), block.num_heads)
        txt_q, txt_k, txt_v = heads_of(block.txt_attn, modulated(txt, txt1), block.num_heads)
        query, key, value = (torch.cat(pair, dim=2) for pair in ((txt_q, img_q), (txt_k, img_k), (txt_v, img_v)))
        attended = attention(query, key, value, pe)
        of_text, of_image = attended[:, : txt.shape[1]], attended[:, txt.shape[1] :]
        after: Tensor | float = 0.0
        for adapter in adapters:
            found = adapter.found("double", number, doubles, img_q)
            if adapter.is_xlabs:
                after = after + found
            else:
                of_image = of_image + found
        img = img + img1.gate * block.img_attn.proj(of_image)
        img = img + img2.gate * block.img_mlp(modulated(img, img2))
        txt = txt + txt1.gate * block.txt_attn.proj(of_text)
        txt = txt + txt2.gate * block.txt_mlp(modulated(txt, txt2))
        return img + after, txt

    return forward


def single_block(block: Any, number: int, doubles: int, adapters: Sequence[WrittenAdapter]) -> Callable[..., Any]:
    def forward(x: Tensor, vec: Any, pe: Tensor, **_: Any) -> Tensor:
        modulation = block.modulation(vec)[0] if block.modulation else vec
        both = block.linear1(modulated(x, modulation))
        qkv, mlp = both.split([3 * block.hidden_size, block.mlp_hidden_dim_first], dim=-1)
        query, key, value = qkv.unflatten(-1, (3, block.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query, key = block.norm(query, key, value)
        attended = attention(query, key, value, pe)
        for adapter in adapters:
            if not adapter.is_xlabs:
                attended = attended + adapter.found("single", number, doubles, query)
        return x + modulation.gate * block.linear2(torch.cat((attended, block.mlp_act(mlp)), dim=2))

    return forward


def modulated(x: Tensor, modulation: Any) -> Tensor:
    return (1 + modulation.scale) * layer_norm(x, x.shape[-1:], eps=1e-6) + modulation.shift


def heads_of(attention: Any, x: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = attention.qkv(x).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    query, key = attention.norm(query, key, value)
    return query, key, value


def attention(query: Tensor, key: Tensor, value: Tensor, pe: Tensor) -> Tensor:
    return scaled_dot_product_attention(turned(query, pe), turned(key, pe), value).transpose(1, 2).flatten(2)


def turned(x: Tensor, pe: Tensor) -> Tensor:
    """The rotation of every two neighbouring channels by their matrix."""
    return (pe @ x.float().unflatten(-1, (-1, 2, 1))).flatten(-3).to(x)
