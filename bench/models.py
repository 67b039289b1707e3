"""UNets and adapters of the real widths, in ComfyUI's own classes. Their weights are random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import torch
from torch import nn

import nodes
from semblance.attention.adapters.checkpoint import AdapterLayout
from semblance.attention.adapters.ip_adapter import IPAdapter
from semblance.attention.engine.scope import Scope
from semblance.attention.families import adapter_numbers
from semblance.attention.methods.instantstyle import InstantStyle
from semblance.attention.references.style import StyleReference
from semblance.host.binding.model import add_patch, map_model
from semblance.host.instantstyle.adapter import LoadedAdapter, manage_adapter
from semblance.tests.tiny_models.unets import SIZE_CONDITIONING_WIDTH, UNET_CONFIGS, Family

TEXT_WIDTH = {"sd15": 768, "sdxl": 2048}
POOLED_WIDTH = 1280


def real_model(kind: Family, dtype: torch.dtype, device: torch.device | None = None) -> Any:
    """A MODEL of the family's true size (SD 1.5 860 M, SDXL 2.6 G parameters), where ComfyUI runs models by default."""
    known = {"sd15": comfy.supported_models.SD15, "sdxl": comfy.supported_models.SDXL}[kind]
    base = {"sd15": comfy.model_base.BaseModel, "sdxl": comfy.model_base.SDXL}[kind]
    widths = {"model_channels": 320, "context_dim": TEXT_WIDTH[kind]}
    vector = {"adm_in_channels": POOLED_WIDTH + SIZE_CONDITIONING_WIDTH} if kind == "sdxl" else {}
    config = known({**UNET_CONFIGS[kind], **widths, **vector})
    config.set_inference_dtype(dtype, None)
    device = device or comfy.model_management.get_torch_device()
    model = base(config, device=device)
    fill(model.diffusion_model)
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=device)


def fill(module: nn.Module) -> None:
    """Random weights small enough that nothing overflows."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.0, 0.02)


@dataclass(frozen=True)
class RealAdapter:
    """An adapter of the published shapes, and a picture as its encoder would see it."""

    adapter: LoadedAdapter
    reference: StyleReference

    def patch(self, model: Any, preset: str) -> Any:
        """MODEL with this adapter on the blocks of `preset`."""
        model_map = map_model(model)
        scope = Scope(model_map.family.preset(preset))
        numbers = self.adapter.numbers_for(model_map)
        patch = InstantStyle(self.adapter.image_tokens(self.reference), self.adapter, numbers, scope)
        return add_patch(model, patch)


def real_adapter(model: Any, kind: Family, variant: Literal["base", "plus"]) -> RealAdapter:
    """ip-adapter_sd15 and plus_sd15, or ip-adapter_sdxl_vit-h and plus_sdxl_vit-h, by their shapes."""
    model_map = map_model(model)
    widths = {number: model_map.widths[site] for site, number in adapter_numbers(model_map.sites).items()}
    if variant == "base":
        layout = AdapterLayout("base", 4, 1024, TEXT_WIDTH[kind], widths)
    else:
        width, heads = {"sd15": (768, 12), "sdxl": (1280, 20)}[kind]
        layout = AdapterLayout("plus", 16, 1280, TEXT_WIDTH[kind], widths, width, 4, heads)
    module = IPAdapter(layout)
    fill(module)
    adapter = manage_adapter(variant, module.half().state_dict() if kind == "sdxl" else module.state_dict())
    shape = (1, 1024) if variant == "base" else (1, 257, 1280)
    return RealAdapter(adapter, StyleReference((torch.randn(shape),), torch.zeros(shape), (1.0,)))


def sample(model: Any, kind: Family, side: int, steps: int = 2, cfg: float = 5.0) -> None:
    """One run of the KSampler node over a latent of `side` by `side`."""

    def conditioning(seed: int) -> list[list[Any]]:
        generator = torch.Generator().manual_seed(seed)
        pooled = {"pooled_output": torch.randn((1, POOLED_WIDTH), generator=generator)} if kind == "sdxl" else {}
        return [[torch.randn((1, 77, TEXT_WIDTH[kind]), generator=generator), pooled]]

    latent = {"samples": torch.randn(1, 4, side, side)}  # the start itself: StyleID refuses added noise
    settings = (model, 1, steps, cfg, "euler", "normal", conditioning(1), conditioning(2), latent)
    nodes.common_ksampler(*settings, disable_noise=True)
