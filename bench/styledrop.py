"""Calls of a UNet of real size with a style adapter on it, weightless."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from semblance.attention.engine.scope import ImageMask, Scope
from semblance.attention.methods.styledrop import StyleDrop
from semblance.host.binding.model import add_patch, map_model

from .cost import table
from .sizes import IMAGES, SIZES, STEPS, TITLES, Calls, plain, weightless
from .weightless import Meter, Size, metered

WIDTHS: Mapping[str, int] = {"bottleneck of 4": 4, "bottleneck of 32": 32, "bottleneck of 32, masked": 32}
"""The adapters that are measured, all of them in every attention."""


def adapted(calls: Calls, name: str) -> Size:
    """The second call of a run, after the adapter and the mask were brought to the GPU."""
    model = weightless(calls.kind)
    model_map, tensors = map_model(model), dict[str, torch.Tensor]()
    for site, channels in model_map.widths.items():
        tensors[f"{site.name}.down"] = torch.zeros(WIDTHS[name], channels)
        tensors[f"{site.name}.up"] = torch.zeros(channels, WIDTHS[name])
    mask = ImageMask(torch.ones(1, calls.pixels, calls.pixels)) if name.endswith("masked") else None
    patched = add_patch(model, StyleDrop(tensors, Scope(model_map.family.preset("all"), mask=mask)))
    run = calls.run()
    with metered(Meter()) as meter:
        calls.call(patched, run, meter, STEPS // 2)
        return calls.call(patched, run, meter, STEPS // 2)


def report_adapters() -> None:
    """Prints what a call with a style adapter takes beside a plain one."""
    for kind in SIZES:
        calls = Calls(kind, SIZES[kind][0], IMAGES)
        print(f"\nApply Style Adapter, {TITLES[kind]}, {calls.pixels} px, {IMAGES} images\n")
        base = plain(calls)
        rows = [
            [
                name,
                f"{size.peak / base.peak:.2f}",
                f"{size.operations / base.operations:.4f}",
                f"{size.kernels / base.kernels:.2f}",
                size.waits - base.waits,
            ]
            for name, size in {"plain": base, **{name: adapted(calls, name) for name in WIDTHS}}.items()
        ]
        table(["call", "peak / plain", "operations / plain", "kernels / plain", "waits more"], rows)
