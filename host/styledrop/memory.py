"""How much memory a tuning takes, told before it starts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import torch

from .adapter_layers import adapted_layers
from .examples import Example
from .recipe import TuningRecipe
from .training_copy import training_dtype

KEPT_BY_RESIDUAL, KEPT_BY_TRANSFORMER, KEPT_BY_LORA = 5.5, 18.4, 3.0
"""Values that wait for their gradients, for each channel of a block's inputs and outputs; measured on SD 1.5 and SDXL
at real sizes (`python -m bench sizes`), where attention is fused."""
KEPT_BY_CHECKPOINT, KEPT_BESIDE = 0.8, 4.2
"""The same with checkpointing: of each block's input, and of what stands around a group of transformer blocks."""
TWICE_BY_RESIDUAL, TWICE_BY_TRANSFORMER = 2.0, 30.0
"""What computing one block a second time takes, besides."""
ALLOCATED = 1.15
"""How much more a GPU's allocator takes than its tensors hold."""
OTHER_MODELS = {True: 2.0, False: 6.0}
"""With and without checkpointing, how often the host's own figure for sampling, for models that are no UNet."""
ADAPTER_BYTES = 16
"""Of each parameter: itself, its gradient and two moments, in float32."""
GB, MB = 2**30, 2**20


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that a tuning takes."""

    weights: float
    adapter: float
    """Its weights with their gradients and AdamW's two moments."""
    activations: float

    @property
    def beside_weights(self) -> float:
        return self.adapter + self.activations

    @property
    def total(self) -> float:
        return self.weights + self.beside_weights

    def __str__(self) -> str:
        return (
            f"about {size_of(self.total)}: {size_of(self.weights)} for the model, {size_of(self.activations)} for "
            f"activations and {size_of(self.adapter)} for the adapter"
        )


def size_of(count: float) -> str:
    """Bytes for people."""
    return f"{count / GB:.1f} GB" if count >= GB else f"{count / MB:.0f} MB"


def estimate(model: Any, examples: Sequence[Example], recipe: TuningRecipe) -> MemoryEstimate:
    """What a tuning on these pictures takes, with the largest picture in every row of a step."""
    largest = max((example.latent for example in examples), key=lambda latent: latent.shape[-2:].numel())
    layers = adapted_layers(model, recipe).values()
    parameters = sum(recipe.width * (layer.channels_in + layer.channels_out) for layer in layers)
    dtype = training_dtype(model)
    weights = model.model_size()
    widened = weights * dtype.itemsize / model.model.get_dtype().itemsize
    held = activations(model, largest, recipe, dtype)
    if model.model.manual_cast_dtype is None:
        weights = widened
    elif not recipe.gradient_checkpointing:
        held += widened  # weights as they are computed with wait for the gradients too
    return MemoryEstimate(weights, parameters * ADAPTER_BYTES, held)


def activations(model: Any, latent: torch.Tensor, recipe: TuningRecipe, dtype: torch.dtype) -> float:
    """Bytes of a step's activations, as a GPU's allocator takes them."""
    network, rows = model.model.diffusion_model, recipe.batch
    if not hasattr(network, "output_blocks"):
        host = model.model.memory_required([rows, *latent.shape])
        return host * OTHER_MODELS[recipe.gradient_checkpointing]
    pixels = latent.shape[-2:].numel() * rows
    return ALLOCATED * pixels * values_of_pixel(network, recipe) * dtype.itemsize


def values_of_pixel(unet: Any, recipe: TuningRecipe) -> float:
    """How many values a UNet holds at most for each pixel of the latent while a step is taken."""
    parts = list(_parts(unet))
    lora = KEPT_BY_LORA if recipe.form == "lora" else 0.0
    if not recipe.gradient_checkpointing:
        residual, transformer = (
            sum(part.through * max(part.depth, 1) for part in parts if bool(part.depth) is attends)
            for attends in (False, True)
        )
        return KEPT_BY_RESIDUAL * residual + (KEPT_BY_TRANSFORMER + lora) * transformer
    inputs = sum(part.entering * max(part.depth, 1) for part in parts)
    beside = sum(part.entering for part in parts if part.depth)
    twice = max(part.through * (TWICE_BY_TRANSFORMER + lora if part.depth else TWICE_BY_RESIDUAL) for part in parts)
    return KEPT_BY_CHECKPOINT * inputs + KEPT_BESIDE * beside + twice


def said_before(memory: MemoryEstimate, device: torch.device, recipe: TuningRecipe) -> str:
    """The sentences on memory that a user reads before the first step."""
    text = f"Tuning takes {memory}."
    if device.type == "cpu":
        return text
    total: Any = comfy.model_management.get_total_memory(device)
    if memory.total > total:
        remedies = (
            *(() if recipe.gradient_checkpointing else ("turn gradient_checkpointing on",)),
            *(("set batch to 1",) if recipe.batch > 1 else ()),
            "take smaller pictures",
        )
        text += f" That is more than the device has ({size_of(total)}): {', or '.join(remedies)}."
    return text


@dataclass(frozen=True)
class _Part:
    """A residual block, or a group of transformer blocks; channels by the share of the latent's pixels they have."""

    entering: float
    through: float
    """Channels in and out of a residual block, or of each transformer block."""
    depth: int = 0
    """How many transformer blocks; 0 for a residual block."""


def _parts(unet: Any) -> Iterator[_Part]:
    share = 1.0
    for block in (*unet.input_blocks, unet.middle_block or (), *unet.output_blocks):
        for layer in block:
            name = type(layer).__name__
            share *= {"Downsample": 0.25, "Upsample": 4.0}.get(name, 1.0)
            if name == "ResBlock":
                yield _Part(layer.channels * share, (layer.channels + layer.out_channels) * share)
            elif hasattr(layer, "transformer_blocks"):
                channels = layer.in_channels * share
                yield _Part(channels, channels, len(layer.transformer_blocks))
