"""Inversion of flow models on the real sampler: it comes back, it is kept, and what it cannot serve is refused."""

from __future__ import annotations

from typing import Any

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from semblance.host.conditioning import Text
from semblance.host.inversion.report import reconstruction_error
from semblance.host.inversion.solver import invert, sample_back
from semblance.tests.tiny_models.weights import seed_weights

CONFIG: dict[str, Any] = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": 24,
    "context_in_dim": 32,
    "hidden_size": 64,
    "mlp_ratio": 2.0,
    "num_heads": 4,
    "depth": 2,
    "depth_single_blocks": 3,
    "axes_dim": [4, 6, 6],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": True,
    "txt_ids_dims": [],
}


def make_flux(seed: int = 0, dtype: torch.dtype = torch.float32) -> ModelPatcher:
    config = comfy.supported_models.Flux(dict(CONFIG))
    config.set_inference_dtype(dtype, None)
    model = comfy.model_base.Flux(config, device=comfy.model_management.unet_offload_device())
    seed_weights(model.diffusion_model, seed)
    return comfy.model_patcher.CoreModelPatcher(
        model,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )


def text(seed: int = 3, tokens: int = 7) -> list[list[Any]]:
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(1, tokens, 32, generator=generator), {"pooled_output": torch.randn(1, 24, generator=generator)}]]


def pictures(images: int = 1, size: tuple[int, int] = (8, 8), seed: int = 5) -> Tensor:
    return torch.randn(images, 16, *size, generator=torch.Generator().manual_seed(seed)) * 2.7


def test_try() -> None:
    model = make_flux()
    words = Text(text(), text())
    for steps in (10, 20, 40):
        made = invert(model, pictures(), steps, "midpoint", words).trajectory
        back = sample_back(model, made, words)
        print(steps, reconstruction_error(model, made, back), made, (made.latents[-1]-made.latents[0]).norm()/made.latents[0].norm())
