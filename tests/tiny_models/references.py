"""The networks behind the frozen reference cases in tests/references, in the host's own classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import comfy.clip_vision
from comfy.model_patcher import ModelPatcher
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from .unets import Family, base_model, patcher_around

REFERENCES = Path(__file__).resolve().parent.parent / "references"


def load_reference(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of one reference file; every parameter of a case stands in its metadata."""
    path = REFERENCES / f"{name}.safetensors"
    with safe_open(path, "pt") as file:
        metadata = json.loads(file.metadata()["json"])
    return load_file(path), metadata


def oracle_unet(kind: Family) -> ModelPatcher:
    """The UNet all reference cases of one family ran on, as a MODEL in float32."""
    weights, metadata = load_reference(f"unet_{kind}")
    model = base_model(kind, metadata["comfy_unet_config"])
    # Stored in half precision, which holds these values exactly.
    model.diffusion_model.load_state_dict({name: weight.float() for name, weight in weights.items()})
    return patcher_around(model)


def oracle_clip_vision() -> comfy.clip_vision.ClipVisionModel:
    """The image encoder of the reference cases."""
    weights, metadata = load_reference("clip_vision")
    encoder = comfy.clip_vision.ClipVisionModel(metadata["config"])
    encoder.model.load_state_dict(weights)
    return encoder
