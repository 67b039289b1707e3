"""CLIP image encoders by the width of their outputs, and how to obtain each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class ImageEncoder:
    """A CLIP image encoder. `remedy` is the sentence that says how to connect it."""

    name: str
    remedy: str
    file: str = ""
    """The name that its file is known by."""
    where: str = ""
    image_size: int = 0
    """The side in pixels of the pictures it reads, which adapters were trained with; 0 where any is right."""

    @property
    def advice(self) -> str:
        """The sentence that says which file to put into models/clip_vision."""
        return f"Put {self.file} there ({self.where}) and press R."

    @classmethod
    def published(cls, name: str, file: str, where: str, image_size: int = 224) -> ImageEncoder:
        """An encoder that is downloaded as `file`."""
        remedy = f"Load {file} with Load CLIP Vision from models/clip_vision; it is published at {where}."
        return cls(name, remedy, file, where, image_size)


DEMO_VIT = ImageEncoder("the demo image encoder", "Connect the clip_vision of Load Demo Model.")
VIT_L = ImageEncoder.published(
    "CLIP ViT-L", "clip_vision_l.safetensors", "huggingface.co/openai/clip-vit-large-patch14"
)
VIT_H = ImageEncoder.published(
    "OpenCLIP ViT-H",
    "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors",
    "huggingface.co/h94/IP-Adapter as models/image_encoder/model.safetensors",
)
VIT_BIGG = ImageEncoder.published(
    "OpenCLIP ViT-bigG",
    "CLIP-ViT-bigG-14-laion2B-39B-b160k.safetensors",
    "huggingface.co/h94/IP-Adapter as sdxl_models/image_encoder/model.safetensors",
)
SIGLIP = ImageEncoder.published(
    "SigLIP so400m", "sigclip_vision_patch14_384.safetensors", "huggingface.co/Comfy-Org/sigclip_vision_384", 384
)
ENCODER_OF_EMBEDDING: Mapping[int, ImageEncoder] = {64: DEMO_VIT, 768: VIT_L, 1024: VIT_H, 1152: SIGLIP, 1280: VIT_BIGG}
"""By the channels of the projected embedding."""
ENCODER_OF_PATCHES: Mapping[int, ImageEncoder] = {128: DEMO_VIT, 1024: VIT_L, 1280: VIT_H, 1664: VIT_BIGG}
"""By the channels of the patch states."""
