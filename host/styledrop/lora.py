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

IN_UNET = re.compile(
    r"diffusion_model\.(?:(input|output)_blocks\.(\d+)\.\d+|middle_block\.\d+)\.(transformer_blocks\..+)"
)
"""A layer's name in ComfyUI's UNet: the part, the number of the block, and the rest."""
IN_TRANSFORMER = re.compile(r"diffusion_model\.(transformer_layers\.(\d+)\..+)")
"""The same in a masked transformer, every layer of which is a block."""
LEVEL = 3
"""Blocks on each level of a UNet: two with attention, and one that changes the size or, going up, a third."""


@dataclass(frozen=True)
class Layer:
    """A linear layer of an attention, read from its name."""

    block: str
    """The name that users write, such as `output.4`."""
    diffusers: str
    """The layer's name in diffusers' model."""

    @classmethod
    def read(cls, module: str) -> Layer:
        """Raises ValueError for a layer outside the transformers of a UNet or a masked transformer."""
        if (found := IN_UNET.fullmatch(module)) is not None:
            part, number, rest = found.groups()
            if part is None:
                return cls("middle.0", f"mid_block.attentions.0.{rest}")
            level, index = divmod(int(number) - 1 if part == "input" else int(number), LEVEL)
            there = "down" if part == "input" else "up"
            return cls(f"{part}.{number}", f"{there}_blocks.{level}.attentions.{index}.{rest}")
        if (found := IN_TRANSFORMER.fullmatch(module)) is not None:
            return cls(f"middle.{found[2]}", found[1])
        raise ValueError(
            f"'{module}' is no layer of an attention as SD 1.5, SDXL and aMUSEd have them, so a LoRA cannot change it "
            "here. Tune a bottleneck instead."
        )


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
        frames = Frames()
        for weight, start in ((0.0, 0.0), (1.0, window.start), (0.0, window.end)):
            # Of two frames that start together ComfyUI takes the later one.
            frames.add(comfy.hooks.HookKeyframe(weight, start, guarantee_steps=0))
        hooks.set_keyframes_on_hooks(frames)
    return hooks


class Frames(comfy.hooks.HookKeyframeGroup):
    """Keyframes that begin anew with each run.

    ComfyUI's `reset` leaves the level of the last step standing, so that a next run which begins at this level is not
    looked at: its first step keeps the first frame's strength.
    """

    def reset(self) -> None:
        super().reset()
        self._curr_t = -1.0

    def clone(self) -> Frames:
        made = Frames()
        for frame in self.keyframes:
            made.add(frame.clone())
        return made


def lora_file(adapter: StyleAdapter) -> dict[str, Tensor]:
    """The adapter as tensors of a LoRA file, in the names of kohya and diffusers that loaders read."""
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
