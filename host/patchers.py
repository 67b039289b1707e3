"""A diffusion model as ComfyUI's own loader makes it, for kinds of which that loader does not know."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.utils
import torch
from torch import Tensor


def load_patcher(
    config: Any, weights: dict[str, Tensor], dtype: torch.dtype | None = None, disable_dynamic: bool = False
) -> Any:
    """The MODEL of ComfyUI's description `config` with `weights`, in `dtype` or as ComfyUI chooses."""
    management = comfy.model_management
    device, offload_device = management.get_torch_device(), management.unet_offload_device()
    dtypes = list(config.supported_inference_dtypes)
    dtype = dtype or management.unet_dtype(
        model_params=comfy.utils.calculate_parameters(weights),
        supported_dtypes=dtypes,
        weight_dtype=comfy.utils.weight_dtype(weights),
    )
    config.set_inference_dtype(dtype, management.unet_manual_cast(dtype, device, dtypes), device=device)
    model = config.get_model(weights, "")
    # Looked up at call time: ComfyUI rebinds the class when it starts with dynamic VRAM.
    patcher_class = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    patcher = patcher_class(model, load_device=device, offload_device=offload_device)
    model.load_model_weights(weights, "", assign=patcher.is_dynamic())
    return patcher
