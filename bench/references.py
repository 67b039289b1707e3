"""Calls of SDXL and Flux at real sizes with Reference Style on them, weightless."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any
from unittest import mock

import comfy.ldm.flux.math
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
PIXELS, TEXT = 1024, 256
WAYS: Mapping[str, tuple[int, bool, float, int]] = {
    "one reference": (1, False, 0.0, 1),
    "one reference, statistics": (1, False, 0.5, 1),
    "one reference, counted four times": (1, False, 0.0, 4),
    "two references": (2, False, 0.0, 1),
    "one reference of another size": (1, True, 0.0, 1),
}
"""References, whether they are of another size, the statistics of queries and keys, and how often they count."""


@cache
def flux() -> Any:
    """FLUX.1 dev as a MODEL without contents, in bfloat16."""
    config = comfy.supported_models.Flux(dict(FLUX))
    config.set_inference_dtype(torch.bfloat16, None)
    meta = torch.device("meta")
    return ModelPatcher(config.get_model({}, device=meta), meta, meta)


def styled(model: Any, channels: int, way: str, dtype: torch.dtype) -> Any:
    """A clone with references in every block."""
    count, other_size, share, weight = WAYS[way]
    side = PIXELS // 8
    empty = torch.empty(1, channels, side, side // 2 if other_size else side, dtype=dtype, device="meta")
    pictures = tuple(ShownPicture(f"reference {number}", empty, empty) for number in range(count))
    scope = Scope(dict.fromkeys(blocks_of(model), 1.0))
    return add_patch(model, ReferenceStyle(pictures, scope, statistics=Statistics(share), weight=weight))


def flux_call(model: Any) -> Size:
    """One call for one image, without CFG, as FLUX.1 dev is sampled."""
    side = PIXELS // 8
    ladder = torch.linspace(1, 0, STEPS + 1).tolist()
    run = Run(flux().get_model_object("model_sampling"), ladder, (side, side))
    options = {**model.model_options["transformer_options"], RUN: run, "cond_or_uncond": [0]}
    options["sigmas"] = [ladder[STEPS // 2]]

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(1, *shape, dtype=torch.bfloat16, device="meta")

    fused = mock.patch.object(comfy.ldm.flux.math, "optimized_attention", wrap_attn(fused_attention))
    plain_rotation = mock.patch.object(comfy.model_management, "in_training", True)
    with fused, plain_rotation, metered(Meter()) as meter:
        meter.begin()
        model.model.apply_model(
            empty(16, side, side).float(),
            torch.empty(1, device="meta"),
            c_crossattn=empty(TEXT, 4096),
            y=empty(768),
            guidance=empty().float(),
            transformer_options=options,
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
    found = {"plain": flux_call(flux())}
    found |= {way: flux_call(styled(flux(), 16, way, torch.float32)) for way in WAYS}
    _print(f"FLUX.1 dev, {PIXELS} px, without CFG", found)


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
