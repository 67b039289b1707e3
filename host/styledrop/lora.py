"""Style adapters of the form *lora*: as patches of weights, as hooks of a conditioning, and as files for any loader."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import comfy.hooks
import comfy.lora
import torch
from torch import Tensor

from ...attention.adapters.style_adapter import StyleAdapter
from ...attention.engine.scope import ScheduleWindow

LAYER = re.compile(
    r"diffusion_model\.(input_blocks|middle_block|output_blocks)\.(\d+)\.(?:\d+\.)?(transformer_blocks\..+)"
)
"""A layer's name in ComfyUI's model: the part, the number of the block, and the rest."""
LEVEL = 3
"""Blocks on each level of a UNet: two with attention, and one that changes the size or, going up, a third."""


@dataclass(frozen=True)
class Layer:
    """A linear layer of an attention, read from its name."""

    part: str
    number: int
    rest: str

    @classmethod
    def read(cls, module: str) -> Layer:
        """Raises ValueError for a layer outside a UNet's transformers."""
        found = LAYER.fullmatch(module)
        if found is None:
            raise ValueError(f"it changes '{module}', which is no layer of an attention in SD 1.5 or SDXL")
        return cls(found[1].partition("_")[0], 0 if found[1] == "middle_block" else int(found[2]), found[3])

    @property
    def block(self) -> str:
        """The name that users write, such as `output.4`."""
        return f"{self.part}.{self.number}"

    @property
    def diffusers(self) -> str:
        """The layer's name in diffusers' UNet."""
        if self.part == "middle":
            return f"mid_block.attentions.0.{self.rest}"
        down = self.part == "input"
        level, index = divmod(self.number - 1 if down else self.number, LEVEL)
        return f"{'down' if down else 'up'}_blocks.{level}.attentions.{index}.{self.rest}"


def add_lora(model: Any, adapter: StyleAdapter, strength: float, blocks: Mapping[str, float]) -> Any:
    """A clone of MODEL with the adapter on its weights, as a LoRA loader puts it there, in blocks with a weight."""
    patched = model.clone()
    weights = _named_as_here(adapter, blocks)
    if strength and weights:
        patches = comfy.lora.load_lora(weights, comfy.lora.model_lora_keys_unet(model.model, {}))
        patched.add_patches(patches, strength)
    return patched


def lora_hooks(adapter: StyleAdapter, strength: float, blocks: Mapping[str, float], window: ScheduleWindow) -> Any:
    """The adapter as hooks for a conditioning, acting in a window; None where nothing would act.

    ComfyUI's keyframes hold one strength from a step to another, so the window's curve must be constant.
    """
    weights = _named_as_here(adapter, blocks)
    if not strength or not weights:
        return None
    hooks = comfy.hooks.create_hook_lora(weights, strength, 0.0)
    if (window.start, window.end) != (0.0, 1.0):
        frames = comfy.hooks.HookKeyframeGroup()
        for weight, start in ((0.0, 0.0), (1.0, window.start), (0.0, window.end)):
            # Of two frames that start together ComfyUI takes the later one.
            frames.add(comfy.hooks.HookKeyframe(weight, start, guarantee_steps=0))
        hooks.set_keyframes_on_hooks(frames)
    return hooks


def lora_file(adapter: StyleAdapter) -> dict[str, Tensor]:
    """The adapter as tensors of a LoRA file, in the names of kohya and diffusers that every loader reads."""
    found: dict[str, Tensor] = {}
    for module in adapter.modules:
        name = f"lora_unet_{Layer.read(module).diffusers.replace('.', '_')}"
        found[f"{name}.lora_down.weight"] = adapter.tensors[f"{module}.down"]
        found[f"{name}.lora_up.weight"] = adapter.tensors[f"{module}.up"]
        # Loaders scale by alpha / rank.
        found[f"{name}.alpha"] = torch.tensor(float(adapter.tensors[f"{module}.down"].shape[0]))
    return found


def _named_as_here(adapter: StyleAdapter, blocks: Mapping[str, float]) -> dict[str, Tensor]:
    """The adapter as a LoRA in the host's own names, multiplied by its blocks' weights; blocks without one left out."""
    found: dict[str, Tensor] = {}
    for module in adapter.modules:
        weight = blocks.get(Layer.read(module).block, 0.0)
        if weight:
            found[f"{module}.lora_down.weight"] = adapter.tensors[f"{module}.down"]
            found[f"{module}.lora_up.weight"] = weight * adapter.tensors[f"{module}.up"]
    return found
