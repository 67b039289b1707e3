"""The transformer of aMUSEd (arXiv:2401.01808), a U-ViT: tokens of a picture and a text in, logits of every token out.

It is called as ComfyUI's UNet is, so that wrappers, patches and replacements of attention find what they find there;
its blocks are `("middle", layer)`.
"""

from __future__ import annotations

from typing import Any

import comfy.ops
import comfy.patcher_extension
import torch
from comfy.ldm.modules.diffusionmodules.util import timestep_embedding
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn

from ...attention.functional.masked_tokens import tokens_of
from .blocks import Logits, ResampledBlocks, TokenEmbedding, TransformerLayer, VectorEmbedding, as_picture, as_tokens
from .settings import TransformerSettings


class MaskedTransformer(nn.Module):
    """Logits (rows, codebook, height, width) of tokens that are given one-hot, with zeros where they are masked."""

    def __init__(self, settings: TransformerSettings, dtype: Any = None, device: Any = None, operations: Any = None):
        super().__init__()
        s, ops = settings, operations or comfy.ops.disable_weight_init
        place: dict[str, Any] = {"dtype": dtype, "device": device}
        self.settings, self.dtype = s, dtype
        self.encoder_proj = ops.Linear(s.text, s.hidden, bias=s.bias, **place)
        self.encoder_proj_layer_norm = ops.RMSNorm(s.hidden, eps=s.norm_eps, elementwise_affine=True, **place)
        self.embed = TokenEmbedding(s, ops, **place)
        self.cond_embed = VectorEmbedding(s, ops, **place)
        self.down_block = ResampledBlocks(s, s.resamples, False, ops, **place)
        self.project_to_hidden_norm = ops.RMSNorm(s.channels, eps=s.norm_eps, elementwise_affine=True, **place)
        self.project_to_hidden = ops.Linear(s.channels, s.hidden, bias=s.bias, **place)
        self.transformer_layers = nn.ModuleList([TransformerLayer(s, ops, **place) for _ in range(s.layers)])
        self.project_from_hidden_norm = ops.RMSNorm(s.hidden, eps=s.norm_eps, elementwise_affine=True, **place)
        self.project_from_hidden = ops.Linear(s.hidden, s.channels, bias=s.bias, **place)
        self.up_block = ResampledBlocks(s, False, s.resamples, ops, **place)
        self.mlm_layer = Logits(s, ops, **place)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor | None = None,
        context: Tensor | None = None,
        y: Tensor | None = None,
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
        **named: Any,
    ) -> Tensor:
        """As ComfyUI's UNet: `context` (rows, text_tokens, text) and `y` (rows, pooled) from the text encoder.

        Among `named` is `micro` (rows, 5): width and height in pixels, crop, and aesthetic score.
        """
        options = {} if transformer_options is None else transformer_options
        wrappers = comfy.patcher_extension.get_all_wrappers(WrappersMP.DIFFUSION_MODEL, options)
        executor = comfy.patcher_extension.WrapperExecutor.new_class_executor(self._forward, self, wrappers)
        return executor.execute(x, timesteps, context, y, control, options, **named)

    def _forward(
        self,
        x: Tensor,
        timesteps: Tensor | None,
        context: Tensor,
        y: Tensor,
        control: Any,
        transformer_options: dict[str, Any],
        micro: Tensor,
        **named: Any,
    ) -> Tensor:
        options = {**transformer_options, "original_shape": list(x.shape)}
        context = self.encoder_proj_layer_norm(self.encoder_proj(context))
        vector = self._vector(y, micro)
        hidden = self.embed(tokens_of(x, self.settings.mask_token), x.dtype)
        hidden = picture = self.down_block(hidden, context, vector, options)
        hidden = self.project_to_hidden(self.project_to_hidden_norm(as_tokens(hidden)))
        options["activations_shape"] = [len(hidden), hidden.shape[-1], *picture.shape[2:]]
        for number, layer in enumerate(self.transformer_layers):
            options.update(block=("middle", number), block_index=0, transformer_index=number)
            hidden = layer(hidden, context, vector, options)
        hidden = self.project_from_hidden(self.project_from_hidden_norm(hidden))
        outside = {name: option for name, option in options.items() if name not in ("block", "block_index")}
        hidden = self.up_block(as_picture(hidden, picture), context, vector, outside)
        # An odd number of tokens a side is resampled to the next even one.
        return self.mlm_layer(hidden)[..., : x.shape[-2], : x.shape[-1]]

    def _vector(self, pooled: Tensor, micro: Tensor) -> Tensor:
        if len(micro) != len(pooled):  # a patch's own rows show a picture of the same size
            micro = micro[:1].expand(len(pooled), -1)
        numbers = timestep_embedding(micro.flatten().float(), self.settings.micro)
        return self.cond_embed(torch.cat([pooled, numbers.reshape(len(micro), -1).to(pooled)], dim=1))
