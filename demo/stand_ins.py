"""Tiny random models with the real topology, as files that the stock loaders open."""

from __future__ import annotations

from dataclasses import dataclass

from safetensors.torch import save_file

from hosting.server import ComfyUIServer
from semblance.tests.tiny_models import adapter_state_dict, write_checkpoint, write_clip_vision


@dataclass(frozen=True)
class ModelFiles:
    """Names of the files a template loads."""

    checkpoint: str
    adapter: str
    image_encoder: str


def write_models(server: ComfyUIServer) -> ModelFiles:
    """Writes an SDXL checkpoint, its IP-Adapter and image encoder into the server's model folders."""
    files = ModelFiles("tiny_sdxl.safetensors", "tiny_ip-adapter_sdxl.safetensors", "tiny_vit_g.safetensors")
    write_checkpoint("sdxl", server.models("checkpoints") / files.checkpoint)
    write_clip_vision("g", server.models("clip_vision") / files.image_encoder)
    save_file(adapter_state_dict("sdxl", "base"), server.models("ipadapter") / files.adapter)
    return files
