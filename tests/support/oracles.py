"""The networks behind the frozen reference cases in tests/references, in the host's own classes."""

from __future__ import annotations

import comfy.clip_vision
from comfy.model_patcher import ModelPatcher

from semblance.tests.support.frozen_cases import load_reference
from semblance.tests.tiny_models.unets import Family, base_model, patcher_around


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
