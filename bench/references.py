"""Calls of SDXL, Flux and Z-Image at real sizes with Reference Style on them, weightless."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from functools import cache
from typing import Any
from unittest import mock

import comfy.ldm.flux.math
import comfy.ldm.lumina.model
import comfy.model_management
import comfy.supported_models
import torch
from comfy.ldm.modules.attention import wrap_attn
from comfy.model_patcher import ModelPatcher

from semblance.attention.engine.guests import ShownPicture
from semblance.attention.engine.scope import Scope
from semblance.attention.methods.reference_style import ReferenceStyle
from semblance.attention.references.shared_style import Statistics
from semblance.host.binding.model import add_patch, blocks_of
from semblance.host.binding.run import RUN, Run

from .cost import table
from .sizes import STEPS, Calls, plain, weightless
from .weightless import Meter, Size, fused_attention, metered

FLUX: Mapping[str, Any] = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": 768,
    "context_in_dim": 4096,
    "hidden_size": 3072,
    "mlp_ratio": 4.0,
    "num_heads": 24,
    "depth": 19,
    "depth_single_blocks": 38,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "txt_ids_dims": [],
    "guidance_embed": True,
}
"""FLUX.1 dev."""
Z_IMAGE: Mapping[str, Any] = {
    "image_model": "lumina2",
    "patch_size": 2,
    "in_channels": 16,
    "dim": 3840,
    "cap_feat_dim": 2560,
    "n_layers": 30,
    "n_heads": 30,
    "n_kv_heads": 30,
    "qk_norm": True,
    "axes_dims": [32, 48, 48],
    "axes_lens": [1536, 512, 512],
    "rope_theta": 256.0,
    "ffn_dim_multiplier": 8.0 / 3.0,
    "z_image_modulation": True,
    "time_scale": 1000.0,
    "pad_tokens_multiple": 32,
}
"""Z-Image, turbo or not."""
TRANSFORMERS: Mapping[str, tuple[Any, Mapping[str, Any], int]] = {
    "FLUX.1 dev": (comfy.supported_models.Flux, FLUX, 256),
    "Z-Image": (comfy.supported_models.ZImage, Z_IMAGE, 128),
}
"""The host's entry, the settings that it reads off a file, and tokens of a prompt."""
PIXELS = 1024
WAYS: Mapping[str, tuple[int, float, float, int]] = {
    "one reference": (1, 1.0, 0.0, 1),
    "one reference, statistics": (1, 1.0, 0.5, 1),
    "one reference, counted four times": (1, 1.0, 0.0, 4),
    "two references": (2, 1.0, 0.0, 1),
    "one reference half as wide": (1, 0.5, 0.0, 1),
    "one reference twice as wide": (1, 2.0, 0.0, 1),
}
"""References, their width beside the image's, the statistics of queries and keys, and how often they count."""


@cache
def transformer(name: str) -> Any:
    """One of TRANSFORMERS as a MODEL without contents, in bfloat16."""
    supported, settings, _ = TRANSFORMERS[name]
    config = supported(dict(settings))
    config.set_inference_dtype(torch.bfloat16, None)
    meta = torch.device("meta")
    return ModelPatcher(config.get_model({}, device=meta), meta, meta)


def styled(model: Any, channels: int, way: str, dtype: torch.dtype) -> Any:
    """A clone with references in every block."""
    count, width, share, weight = WAYS[way]
    side = PIXELS // 8
    empty = torch.empty(1, channels, side, int(side * width), dtype=dtype, device="meta")
    pictures = tuple(ShownPicture(f"reference {number}", empty, empty) for number in range(count))
    scope = Scope(dict.fromkeys(blocks_of(model), 1.0))
    return add_patch(model, ReferenceStyle(pictures, scope, statistics=Statistics(share), weight=weight))


def transformer_call(name: str, model: Any) -> Size:
    """One call for one image, without CFG, as FLUX.1 dev and Z-Image turbo are sampled."""
    side = PIXELS // 8
    _, settings, tokens = TRANSFORMERS[name]
    ladder = torch.linspace(1, 0, STEPS + 1).tolist()
    run = Run(transformer(name).get_model_object("model_sampling"), ladder, (side, side))
    options = {**model.model_options["transformer_options"], RUN: run, "cond_or_uncond": [0]}
    options["sigmas"] = [ladder[STEPS // 2]]

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(1, *shape, dtype=torch.bfloat16, device="meta")

    if name == "Z-Image":
        width, beside = settings["cap_feat_dim"], {"num_tokens": tokens}
    else:
        width, beside = settings["context_in_dim"], {"y": empty(768), "guidance": empty().float()}
    fused = wrap_attn(fused_attention)
    with ExitStack() as replaced:
        for module in (comfy.ldm.flux.math, comfy.ldm.lumina.model):
            for attention in ("optimized_attention", "optimized_attention_masked"):
                if hasattr(module, attention):
                    replaced.enter_context(mock.patch.object(module, attention, fused))
        replaced.enter_context(mock.patch.object(comfy.model_management, "in_training", True))  # plain rotation
        meter = replaced.enter_context(metered(Meter()))
        meter.begin()
        model.model.apply_model(
            empty(16, side, side).float(),
            torch.empty(1, device="meta"),
            c_crossattn=empty(tokens, width),
            transformer_options=options,
            **beside,
        )
        return meter.size


def unet_call(model: Any, calls: Calls) -> Size:
    """One call of SDXL for one image with CFG."""
    run = calls.run()
    run.models[torch.device("meta")] = model.model
    with metered(Meter()) as meter:
        return calls.call(model, run, meter, STEPS // 2)


def report_references() -> None:
    """Prints what a call with Reference Style in every block takes beside a plain one."""
    calls = Calls("sdxl", PIXELS, 1)
    sdxl = weightless("sdxl")
    found = {"plain": plain(calls)}
    found |= {way: unet_call(styled(sdxl, 4, way, torch.float16), calls) for way in WAYS}
    _print(f"SDXL, {PIXELS} px, with CFG", found)
    for name in TRANSFORMERS:
        model = transformer(name)
        found = {"plain": transformer_call(name, model)}
        found |= {way: transformer_call(name, styled(model, 16, way, torch.float32)) for way in WAYS}
        _print(f"{name}, {PIXELS} px, without CFG", found)


def _print(title: str, found: Mapping[str, Size]) -> None:
    print(f"\nReference Style, {title}, one image\n")
    base = found["plain"]
    rows = [
        [
            name,
            f"{size.operations / base.operations:.2f}",
            f"{size.peak / 2**20:.0f} MB",
            f"{size.peak / base.peak:.2f}",
            f"{size.kernels / base.kernels:.2f}",
            size.waits - base.waits,
        ]
        for name, size in found.items()
    ]
    table(["call", "operations / plain", "peak", "peak / plain", "kernels / plain", "waits more"], rows)
