"""Tiny transformers as files, which tell what the host reads off the widths of real ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.model_detection
import comfy.supported_models
from comfy.model_patcher import ModelPatcher
from safetensors.torch import save_file

TOLD = "tiny_config"
"""The name in a file's metadata under which its configuration stands."""


class TinyZImage(comfy.supported_models.ZImage):
    """Z-Image's entry in the host's list, which tells it from Lumina 2 by its width."""

    unet_config = {"image_model": "lumina2", "dim": 256}


def register_tiny_transformers() -> None:
    """Lets UNETLoader open tiny files; real files are recognised as before."""
    known = comfy.supported_models.models
    if TinyZImage not in known:
        known.insert(0, TinyZImage)
        comfy.model_detection.detect_unet_config = told_or(comfy.model_detection.detect_unet_config)


def told_or(detect: Any) -> Any:
    """The host finds the number of blocks and widths in the tensors, and takes the rest from there."""

    def detected(state_dict: Any, prefix: str, metadata: Mapping[str, str] | None = None) -> Any:
        if metadata and TOLD in metadata:
            return json.loads(metadata[TOLD])
        return detect(state_dict, prefix, metadata=metadata)

    return detected


def write_transformer(model: ModelPatcher, config: Mapping[str, Any], path: Path) -> Path:
    """A file for UNETLoader with the weights of a tiny MODEL that the host made of `config`."""
    weights = {
        name: tensor.detach().clone().contiguous() for name, tensor in model.model.diffusion_model.state_dict().items()
    }
    save_file(weights, path, {TOLD: json.dumps(dict(config))})
    return path
