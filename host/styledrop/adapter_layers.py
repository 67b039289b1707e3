"""Which layers of a model an adapter has modules at, how large they are, and what a fresh one holds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...attention.adapters.style_adapter import StyleAdapter
from ..binding.model import ModelMap, map_model
from ..binding.unet_sites import attention_layer
from .draws import generator_for
from .recipe import TuningRecipe


@dataclass(frozen=True)
class AdaptedLayer:
    """One module of an adapter."""

    channels_in: int
    channels_out: int


def adapted_layers(model: Any, recipe: TuningRecipe) -> dict[str, AdaptedLayer]:
    """The modules of an adapter by name, in the order the model runs them.

    Raises ValueError for a model of an unknown family and for blocks without attention.
    """
    model_map = map_model(model)
    unknown = next((block for block in recipe.blocks if block not in model_map.family.blocks), None)
    if unknown is not None:
        known = ", ".join(model_map.family.blocks)
        raise ValueError(f"There is no block called '{unknown}' in this model. Its blocks are: {known}.")
    if recipe.form == "bottleneck":
        chosen = ((site, width) for site, width in model_map.widths.items() if site.block in recipe.blocks)
        return {site.name: AdaptedLayer(width, width) for site, width in chosen}
    return {
        name: AdaptedLayer(linear.in_features, linear.out_features)
        for name, linear in lora_linears(model.model, model_map, recipe.blocks).items()
    }


def lora_linears(base_model: Any, model_map: ModelMap, blocks: Iterable[str]) -> dict[str, Any]:
    """The host's modules of q, k, v and output projection in `blocks`, by their names in `base_model`."""
    names = {id(module): name for name, module in base_model.named_modules()}
    chosen = frozenset(blocks)
    layers = (attention_layer(base_model.diffusion_model, site) for site in model_map.sites if site.block in chosen)
    linears = (linear for layer in layers for linear in (layer.to_q, layer.to_k, layer.to_v, layer.to_out[0]))
    return {names[id(linear)]: linear for linear in linears}


def fresh_tensors(layers: Mapping[str, AdaptedLayer], width: int, seed: int) -> dict[str, Tensor]:
    """An adapter that changes nothing yet: `up` is zero, `down` keeps the size of what it reads."""
    tensors: dict[str, Tensor] = {}
    for name, layer in layers.items():
        noise = torch.randn(width, layer.channels_in, generator=generator_for(seed, name))
        tensors[f"{name}.down"] = noise / math.sqrt(layer.channels_in)
        tensors[f"{name}.up"] = torch.zeros(layer.channels_out, width)
    return tensors


def check_start(start: StyleAdapter, layers: Mapping[str, AdaptedLayer], recipe: TuningRecipe) -> None:
    """Refuses, with a ValueError, to go on from an adapter of another form, width or other layers."""
    found = (start.form, start.width)
    if found != (recipe.form, recipe.width):
        raise ValueError(
            f"The adapter to continue from is a {start.form} of width {start.width}, but {recipe.form} of width "
            f"{recipe.width} is asked for. Set form and width as they were, or tune a new one."
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in start.tensors.items()}
    wanted = {
        f"{name}.{part}": shape
        for name, layer in layers.items()
        for part, shape in (
            ("down", (recipe.width, layer.channels_in)),
            ("up", (layer.channels_out, recipe.width)),
        )
    }
    if shapes != wanted:
        blocks = ", ".join(start.settings.get("blocks", ())) or "others"
        raise ValueError(
            f"The adapter to continue from has {len(start.modules)} layers (blocks: {blocks}), but the chosen blocks "
            f"have {len(layers)}. Choose the blocks it was tuned with, or tune a new one."
        )
