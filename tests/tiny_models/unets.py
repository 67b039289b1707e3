"""Tiny UNets of both families, with the block numbers, depths and heads of the real ones."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Literal

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.supported_models_base import ClipTarget
from torch import Tensor, nn

from .encoders import TEXT_WIDTH, clip_target
from .weights import seed_weights

Family = Literal["sd15", "sdxl"]

CONTEXT_WIDTH: Mapping[Family, int] = {"sd15": TEXT_WIDTH["l"], "sdxl": TEXT_WIDTH["l"] + TEXT_WIDTH["g"]}
POOLED_WIDTH = TEXT_WIDTH["g"]
SIZE_CONDITIONING_WIDTH = 6 * 256
SDXL_VECTOR_WIDTH = POOLED_WIDTH + SIZE_CONDITIONING_WIDTH

# What the host needs to tell a tiny file from a real one: it compares exactly these entries.
DETECTED: Mapping[Family, dict[str, Any]] = {
    "sd15": {
        "model_channels": 32,
        "context_dim": CONTEXT_WIDTH["sd15"],
        "use_linear_in_transformer": False,
        "adm_in_channels": None,
        "use_temporal_attention": False,
    },
    "sdxl": {
        "model_channels": 32,
        "context_dim": CONTEXT_WIDTH["sdxl"],
        "use_linear_in_transformer": True,
        "adm_in_channels": SDXL_VECTOR_WIDTH,
        "transformer_depth": [0, 0, 2, 2, 10, 10],
        "use_temporal_attention": False,
    },
}

COMMON = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "legacy": False,
    "use_checkpoint": False,
    "use_spatial_transformer": True,
    "use_temporal_resblock": False,
}

UNET_CONFIGS: Mapping[Family, dict[str, Any]] = {
    "sd15": {
        **COMMON,
        **DETECTED["sd15"],
        "channel_mult": [1, 2, 4, 4],
        "num_res_blocks": [2, 2, 2, 2],
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_middle": 1,
        "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    },
    "sdxl": {
        **COMMON,
        **DETECTED["sdxl"],
        "num_classes": "sequential",
        "channel_mult": [1, 2, 4],
        "num_res_blocks": [2, 2, 2],
        "transformer_depth_middle": 10,
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    },
}


class TinySD15(comfy.supported_models.SD15):
    """SD 1.5 as the host's list of known models describes it: eight heads at every width."""

    unet_config = DETECTED["sd15"]

    def clip_target(self, state_dict: Mapping[str, Tensor] | None = None) -> ClipTarget:
        return clip_target("sd15")


class TinySDXL(comfy.supported_models.SDXL):
    """SDXL as the host's list of known models describes it: more heads where it is wider, here of width 16."""

    unet_config = DETECTED["sdxl"]
    unet_extra_config = {"num_heads": -1, "num_head_channels": 16}

    def clip_target(self, state_dict: Mapping[str, Tensor] | None = None) -> ClipTarget:
        return clip_target("sdxl")


SUPPORTED = {"sd15": TinySD15, "sdxl": TinySDXL}


NARROW, WIDE = 32, 64
"""Channels of a UNet's first level. Its norms have 32 groups: one of a single channel takes away whatever was added to
that, and so a narrow UNet is blind to timesteps, pooled text and sizes. A wide one reads them."""


def unet_config(kind: Family, channels: int = NARROW) -> dict[str, Any]:
    return {**UNET_CONFIGS[kind], "model_channels": channels}


def make_unet(
    kind: Family = "sd15",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    v_prediction: bool = False,
    channels: int = NARROW,
) -> ModelPatcher:
    """A MODEL as the host's loaders make it; it can be copied deeply, as training and hooks do."""

    def build(disable_dynamic: bool = False) -> ModelPatcher:
        model = base_model(kind, unet_config(kind, channels), dtype, v_prediction)
        seed_weights(model.diffusion_model, seed)
        return patcher_around(model)

    patcher = build()
    patcher.cached_patcher_init = (build, ())
    return patcher


def base_model(
    kind: Family,
    unet_config: dict[str, Any],
    dtype: torch.dtype = torch.float32,
    v_prediction: bool = False,
    cast: torch.dtype | None = None,
) -> comfy.model_base.BaseModel:
    """The host's model around a UNet of `unet_config`, with raw memory for weights; it computes in `cast`."""
    config = SUPPORTED[kind](deepcopy(unet_config))
    config.set_inference_dtype(dtype, cast)
    model_type = comfy.model_base.ModelType.V_PREDICTION if v_prediction else comfy.model_base.ModelType.EPS
    model_class = comfy.model_base.SDXL if kind == "sdxl" else comfy.model_base.BaseModel
    return model_class(config, model_type=model_type, device=comfy.model_management.unet_offload_device())


def patcher_around(model: comfy.model_base.BaseModel) -> ModelPatcher:
    return comfy.model_patcher.CoreModelPatcher(
        model,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )


DIFFUSERS_CONFIGS: Mapping[Family, dict[str, Any]] = {
    "sd15": {
        "block_out_channels": (32, 64, 128, 128),
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "cross_attention_dim": CONTEXT_WIDTH["sd15"],
        "attention_head_dim": 8,  # diffusers' word for the number of heads
    },
    "sdxl": {
        "block_out_channels": (32, 64, 128),
        "down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
        "up_block_types": ("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
        "cross_attention_dim": CONTEXT_WIDTH["sdxl"],
        "attention_head_dim": (2, 4, 8),
        "transformer_layers_per_block": (1, 2, 10),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": SDXL_VECTOR_WIDTH,
    },
}


def diffusers_unet(kind: Family, comfy_unet: Any) -> nn.Module:
    """diffusers' UNet2DConditionModel with the weights of `comfy_unet`, a tiny `MODEL.model.diffusion_model`."""
    from diffusers import UNet2DConditionModel

    config, wider = dict(DIFFUSERS_CONFIGS[kind]), comfy_unet.model_channels // NARROW
    config["block_out_channels"] = tuple(wider * channels for channels in config["block_out_channels"])
    if kind == "sdxl":  # whose heads are all of one width
        config["attention_head_dim"] = tuple(wider * heads for heads in config["attention_head_dim"])
    unet = UNet2DConditionModel(sample_size=16, **config)
    weights = comfy_unet.state_dict()
    comfy_names = comfy.utils.unet_to_diffusers(UNET_CONFIGS[kind])
    unet.load_state_dict({name: weights[comfy_names[name]] for name in unet.state_dict()})
    return unet.eval()
