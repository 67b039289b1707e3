"""Tiny, seeded stand-ins for real models on the real ComfyUI: its classes and topology, a sixteenth of the widths.

Block numbers, transformer depths, heads, projections and file layouts are those of the real models, so whatever finds
its way in these finds it in those; the weights are random and the pictures noise. A server that has this folder among
its custom nodes opens tiny files with its stock loaders.
"""

from __future__ import annotations

from typing import Any

from .adapters import adapter_state_dict, controlnet_state_dict, lora_state_dict, make_controlnet, with_lora
from .encoders import CLIP_KINDS, VISION_KINDS, make_clip, make_clip_vision, make_vae
from .files import register_tiny_supported_models, write_checkpoint, write_clip_vision, write_vae
from .flux_adapters import FLUX_FORMS, flux_adapter_state_dict, make_siglip, siglip_config, siglip_head, write_siglip
from .sampling import empty_latent, ksampler, make_conditioning, random_latent, sampler_custom
from .transformers import register_tiny_transformers, write_transformer
from .unets import CONTEXT_WIDTH, POOLED_WIDTH, UNET_CONFIGS, Family, diffusers_unet, make_unet

__all__ = [
    "CLIP_KINDS",
    "CONTEXT_WIDTH",
    "FLUX_FORMS",
    "POOLED_WIDTH",
    "UNET_CONFIGS",
    "VISION_KINDS",
    "Family",
    "adapter_state_dict",
    "comfy_entrypoint",
    "controlnet_state_dict",
    "diffusers_unet",
    "empty_latent",
    "flux_adapter_state_dict",
    "ksampler",
    "lora_state_dict",
    "make_clip",
    "make_clip_vision",
    "make_conditioning",
    "make_controlnet",
    "make_siglip",
    "make_unet",
    "make_vae",
    "random_latent",
    "register_tiny_supported_models",
    "register_tiny_transformers",
    "sampler_custom",
    "siglip_config",
    "siglip_head",
    "with_lora",
    "write_checkpoint",
    "write_clip_vision",
    "write_siglip",
    "write_transformer",
    "write_vae",
]


async def comfy_entrypoint() -> Any:
    """What ComfyUI calls when this folder is one of its custom nodes: no nodes, but the tiny models are known."""
    from comfy_api.latest import ComfyExtension

    class TinyModels(ComfyExtension):
        async def get_node_list(self) -> list[Any]:
            return []

    register_tiny_supported_models()
    register_tiny_transformers()
    return TinyModels()
