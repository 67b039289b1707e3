"""IP-Adapters under ComfyUI's memory management, and the check that one fits the MODEL."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.utils
import torch
from torch import Tensor

from ...attention.adapters.checkpoint import PUBLISHED, UnknownAdapter, flatten, recognise
from ...attention.adapters.flux_checkpoint import PUBLISHED as PUBLISHED_FOR_FLUX
from ...attention.adapters.flux_checkpoint import (
    FluxAdapterLayout,
    Layout,
    is_for_flux,
    named_alike,
    recognise_flux,
)
from ...attention.adapters.flux_ip_adapter import FluxIPAdapter
from ...attention.adapters.ip_adapter import IPAdapter
from ...attention.engine.call import AttentionSite
from ...attention.families import adapter_numbers
from ...attention.methods.instantstyle import ImageTokens
from ...attention.references.style import StyleReference
from ..binding.model import ModelMap
from ..files import ADAPTERS, DEMO_ADAPTERS, UnreadableFile, find_file, load_tensors

FITTING = {
    "SD 1.5": "ip-adapter_sd15.safetensors",
    "SDXL": "ip-adapter_sdxl_vit-h.safetensors",
    "Flux": "ip-adapter.bin of huggingface.co/InstantX/FLUX.1-dev-IP-Adapter",
}


@dataclass(frozen=True, eq=False)
class LoadedAdapter:
    """An opened IP-Adapter file. ComfyUI moves its weights between devices by the `patcher`."""

    name: str
    layout: Layout
    patcher: Any
    encoder: Any = None
    """The CLIP_VISION that goes with it, if it was loaded together with one."""

    def keys_values(self, number: int, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Image keys and values of one cross-attention, (..., tokens, channels), on the device of ComfyUI's choice."""
        comfy.model_management.load_models_gpu([self.patcher])
        return self.patcher.model.keys_values(number, tokens.to(self.patcher.load_device))

    def image_tokens(self, reference: StyleReference) -> ImageTokens:
        """The reference after this adapter's projector, float32 on the CPU."""
        conditional = tuple(self.tokens_of(picture) for picture in reference.pictures)
        return ImageTokens(conditional, (self.tokens_of(reference.negative),), reference.weights)

    def tokens_of(self, picture: Tensor) -> Tensor:
        """One encoded picture (crops, ...) after this adapter's projector, (crops * tokens, channels) on the CPU."""
        comfy.model_management.load_models_gpu([self.patcher])
        return self.patcher.model.tokens(picture.to(self.patcher.load_device)).float().cpu().flatten(0, 1)

    def numbers_for(self, model_map: ModelMap) -> dict[AttentionSite, int]:
        """The number of its weights for each cross-attention of a MODEL. Raises ValueError if the two do not fit."""
        numbers = _numbers(self.layout, model_map)
        layout = self.layout
        if not fits(layout, model_map):
            raise ValueError(
                f"The adapter '{self.name}' is made for {layout.family} ({layout.text_width}-wide text, "
                f"{len(layout.widths)} layers), but the model is {model_map.name} ({model_map.text_width}-wide text, "
                f"{len(numbers)} layers). {_advice(layout.family, model_map.name)}"
            )
        return numbers

    def __repr__(self) -> str:
        return f"{self.name}: {self.layout}"


def _advice(made_for: str, model: str) -> str:
    """What to do with an adapter and a model that do not fit each other."""
    if made_for == model:
        return "One of the two is not whole: download the adapter again, or load a model that is no thinned copy."
    fitting = FITTING.get(model)
    return f"Load an adapter for {model}, e.g. {fitting}." if fitting else f"Load a model of {made_for}."


def fits(layout: Layout, model_map: ModelMap) -> bool:
    """Whether an adapter of this layout has weights for every cross-attention of a MODEL and the width of its text."""
    widths = {number: model_map.widths[site] for site, number in _numbers(layout, model_map).items()}
    return layout.text_width == model_map.text_width and dict(layout.widths) == widths


def _numbers(layout: Layout, model_map: ModelMap) -> dict[AttentionSite, int]:
    """The numbers that a file of this layout would have for the layers of a MODEL that it may act on."""
    double_alone = isinstance(layout, FluxAdapterLayout) and not layout.acts_on_single_blocks
    numbers = adapter_numbers(model_map.sites)
    return {site: number for site, number in numbers.items() if not (double_alone and site.part == "single")}


def load_adapter(name: str) -> LoadedAdapter:
    """Opens an adapter file from models/ipadapter.

    Raises UnreadableFile if it is missing, damaged, or not an IP-Adapter that this pack can use.
    """
    path = find_file(name, ADAPTERS, DEMO_ADAPTERS, published=PUBLISHED)
    try:
        return manage_adapter(name, flatten(load_tensors(path)))
    except UnknownAdapter as unknown:
        raise UnreadableFile(f"'{name}': {unknown}") from unknown


def manage_adapter(name: str, tensors: dict[str, Tensor]) -> LoadedAdapter:
    """An adapter from its flattened tensors. Raises UnknownAdapter if they are not those of an IP-Adapter."""
    is_flux = is_for_flux(tensors)
    if is_flux:
        tensors = named_alike(tensors)
        layout: Layout = recognise_flux(tensors)
    else:
        layout = recognise(tensors)
        # A training checkpoint holds the whole UNet beside it.
        tensors = {key: tensor for key, tensor in tensors.items() if key.startswith(("image_proj.", "ip_adapter."))}
    published = PUBLISHED_FOR_FLUX if is_flux else PUBLISHED
    dtype = comfy.utils.weight_dtype(tensors) or torch.float32
    module = _module(layout)
    _check_known(tensors, set(module.state_dict()), published)
    module.to(dtype)
    # Looked up at call time: ComfyUI rebinds the class when it starts with dynamic VRAM.
    patcher = comfy.model_patcher.CoreModelPatcher(
        module,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )
    try:
        module.load_state_dict(tensors, strict=True, assign=patcher.is_dynamic())
    except RuntimeError as mismatch:
        raise UnknownAdapter(
            f"This IP-Adapter file is incomplete or of an unknown layout ({str(mismatch).splitlines()[-1].strip()}). "
            f"Download it again from {published}."
        ) from mismatch
    return LoadedAdapter(name, layout, patcher)


def _check_known(tensors: Mapping[str, Tensor], known: Collection[str], published: str) -> None:
    """Refuses a file with tensors that no published one has: without them it would draw otherwise than it was meant."""
    unknown = [name for name in tensors if name not in known]
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise UnknownAdapter(
            f"This IP-Adapter file holds what no published one does ('{unknown[0]}'{more}), so it is of a form that "
            f"Semblance does not know. Use it with the program it was made for, or load an adapter of {published}."
        )


def _module(layout: Layout) -> FluxIPAdapter | IPAdapter:
    if isinstance(layout, FluxAdapterLayout):
        return FluxIPAdapter(layout, comfy.ops.manual_cast)
    return IPAdapter(layout, comfy.ops.manual_cast)
