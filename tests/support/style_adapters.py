"""Style adapters of random weights, as a tuning of some length leaves them."""

from __future__ import annotations

from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from semblance.attention.adapters.style_adapter import AdapterForm, StyleAdapter
from semblance.attention.engine.scope import Scope
from semblance.host.binding.model import map_model
from semblance.host.identity import subject_stamp
from semblance.host.styledrop.guider import Scales, TwoScaleGuider, styledrop_guider

WIDTH = 4


def bottleneck_tensors(widths: dict[str, int], seed: int = 0, size: float = 0.1) -> dict[str, Tensor]:
    """A random bottleneck for each layer, by its name and channels."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for name, channels in widths.items():
        tensors[f"{name}.down"] = torch.randn(WIDTH, channels, generator=generator) / channels**0.5
        tensors[f"{name}.up"] = size * torch.randn(channels, WIDTH, generator=generator)
    return tensors


def lora_tensors(model: Any, seed: int = 0, size: float = 0.1) -> dict[str, Tensor]:
    """A random low-rank change of every linear layer of the attentions."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for key, weight in model.model.state_dict().items():
        if ".attn" in key and key.endswith(".weight"):
            name = key.removesuffix(".weight")
            tensors[f"{name}.down"] = torch.randn(WIDTH, weight.shape[1], generator=generator) / weight.shape[1] ** 0.5
            tensors[f"{name}.up"] = size * torch.randn(weight.shape[0], WIDTH, generator=generator)
    return tensors


def style_adapter(model: Any, form: AdapterForm = "bottleneck", seed: int = 0, size: float = 0.1) -> StyleAdapter:
    """An adapter for all attentions of `model`; with a size of 0 a fresh one."""
    widths = {site.name: channels for site, channels in map_model(model).widths.items()}
    tensors = bottleneck_tensors(widths, seed, size) if form == "bottleneck" else lora_tensors(model, seed, size)
    return StyleAdapter(form, tensors, subject_stamp(model), "a cat", "in the style of chalk")


def guider(
    studio: Any,
    adapter: StyleAdapter,
    scales: Scales,
    model: ModelPatcher | None = None,
    strength: float = 1.0,
    **scoped: Any,
) -> TwoScaleGuider:
    """StyleDrop Guider of a studio's texts, with an adapter in all blocks."""

    def everywhere(known: Any) -> Scope:
        return Scope(known.family.preset("all"), **scoped)

    given = (model or studio.model, adapter, strength, everywhere, scales)
    return styledrop_guider(*given, studio.positive, studio.negative)
