"""Small aMUSEd models with random weights, in the classes of diffusers, which are the oracle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from diffusers import AmusedScheduler, UVit2DModel, VQModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

Size = Literal["256", "512"]
SIZES: tuple[Size, ...] = ("256", "512")
CODEBOOK, VOCABULARY, TEXT = 20, 24, 32
TRANSFORMER: Mapping[str, Any] = {
    "hidden_size": 48,
    "cond_embed_dim": TEXT,
    "micro_cond_encode_dim": 8,
    "micro_cond_embed_dim": 40,
    "encoder_hidden_size": TEXT,
    "vocab_size": VOCABULARY,
    "codebook_size": CODEBOOK,
    "in_channels": 24,
    "block_out_channels": 32,
    "num_res_blocks": 2,
    "block_num_heads": 4,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 40,
}
VQ: Mapping[str, Any] = {
    "block_out_channels": (8, 16, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "layers_per_block": 2,
    "latent_channels": 8,
    "num_vq_embeddings": CODEBOOK,
    "vq_embed_dim": 8,
    "norm_num_groups": 4,
    "mid_block_add_attention": False,
    "lookup_from_codebook": True,
    "force_upcast": True,
}
PIXELS = 4
"""Of a token, a side; the published model has 16."""


@dataclass(frozen=True, eq=False)
class Amused:
    """The three networks of diffusers and transformers."""

    transformer: Any
    vq: Any
    text: Any

    @classmethod
    def of(cls, size: Size, seed: int = 0, vq: Mapping[str, Any] = MappingProxyType({})) -> Amused:
        resamples = size == "512"
        torch.manual_seed(seed)
        transformer = UVit2DModel(**{**TRANSFORMER, "downsample": resamples, "upsample": resamples})
        vq_model = VQModel(**{**VQ, **vq})
        text = CLIPTextModelWithProjection(
            CLIPTextConfig(
                hidden_size=TEXT,
                projection_dim=TEXT,
                intermediate_size=48,
                num_hidden_layers=3,
                num_attention_heads=4,
                hidden_act="quick_gelu",
                eos_token_id=49407,
                vocab_size=49408,
            )
        )
        for network in (transformer, vq_model, text):
            spread(network)
        return cls(transformer, vq_model, text)

    def pipeline(self, kind: Any) -> Any:
        """One of diffusers' three pipelines with these networks; texts are given encoded."""
        scheduler = AmusedScheduler(mask_token_id=VOCABULARY - 1)
        pipe = kind(
            vqvae=self.vq, tokenizer=None, text_encoder=self.text, transformer=self.transformer, scheduler=scheduler
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def files(self, folder: Path) -> dict[str, Path]:
        """The three as files named as the published ones are, with what their shapes do not tell in the metadata."""
        heads = {
            name: TRANSFORMER[name] for name in ("num_attention_heads", "block_num_heads", "micro_cond_encode_dim")
        }
        parts = {
            "diffusion_models": (self.transformer, "transformer.safetensors", heads),
            "vae": (self.vq, "vqvae.safetensors", {"norm_num_groups": 4}),
            "text_encoders": (self.text, "text_encoder.safetensors", {"num_attention_heads": 4}),
        }
        made: dict[str, Path] = {}
        for place, (network, name, config) in parts.items():
            (folder / place).mkdir(parents=True, exist_ok=True)
            made[place] = folder / place / name
            save_file(weights_of(network), made[place], {"format": "pt", "config": json.dumps(config)})
        return made


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone().contiguous() for name, tensor in network.state_dict().items()}


@torch.no_grad()
def spread(network: nn.Module) -> None:
    """Weights at which every part of a network is seen in its output; those of the start are zero in places."""
    generator = torch.Generator().manual_seed(1)
    for name, weight in network.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if "norm" in name and name.endswith("weight"):
            weight.copy_(1 + 0.2 * noise)
        elif weight.ndim < 2 or "gamma" in name or "beta" in name:
            weight.copy_(0.2 * noise)
        else:
            weight.copy_(noise if "embedding" in name else noise * 1.5 / weight[0].numel() ** 0.5)
    network.eval().requires_grad_(False)
