"""Tiny models and pictures under the names that the workflows for ComfyUI_IPAdapter_plus load."""

from __future__ import annotations

import numpy
from PIL import Image
from safetensors.torch import save_file

from semblance.harness.server import ComfyUIServer
from semblance.tests.tiny_models import adapter_state_dict, write_checkpoint, write_clip_vision

ADAPTERS: dict[str, tuple[str, str, dict[str, int]]] = {
    "ip-adapter_sd15": ("sd15", "base", {}),
    "ip-adapter-plus_sd15": ("sd15", "plus", {}),
    "ip-adapter_sdxl_vit-h": ("sdxl", "base", {"clip_width": 64}),
    "ip-adapter-plus_sdxl_vit-h": ("sdxl", "plus", {}),
}
PICTURES = ("style", "second", "layout", "unwanted", "wide")


def stock(server: ComfyUIServer) -> ComfyUIServer:
    """Puts tiny files on the server, under the names that the workflows load."""
    for kind in ("sd15", "sdxl"):
        write_checkpoint(kind, server.models("checkpoints") / f"{kind}.safetensors")
    for name, (kind, variant, options) in ADAPTERS.items():
        save_file(adapter_state_dict(kind, variant, **options), server.models("ipadapter") / f"{name}.safetensors")
    write_clip_vision("h", server.models("clip_vision") / "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors")
    for seed, name in enumerate(PICTURES):
        height, width = (64, 192) if name == "wide" else (96, 80)
        noise = numpy.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=numpy.uint8)
        Image.fromarray(noise).resize((width, height)).save(server.base_directory / "input" / f"{name}.png")
    for side, name in enumerate(("left", "right")):
        mask = numpy.zeros((64, 64), dtype=numpy.uint8)
        mask[:, 32 * side : 32 * side + 32] = 255
        Image.fromarray(mask).convert("RGB").save(server.base_directory / "input" / f"{name}.png")
    return server
