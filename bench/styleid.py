"""StyleID on UNets of the real widths: what its guests cost, and what it keeps."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from semblance.attention.engine.scope import Scope
from semblance.attention.families import STYLEID
from semblance.attention.methods.styleid.method import StyleID
from semblance.attention.references.trajectory import ReferenceTrajectory
from semblance.host.binding.model import add_patch, map_model
from semblance.host.identity import stamp_of
from semblance.tests.tiny_models.unets import SIZE_CONDITIONING_WIDTH

from .cost import Run
from .models import POOLED_WIDTH, TEXT_WIDTH, Family, sample

STEPS = 2


def styleid_runs(model: Any, kind: Family, pixels: int) -> dict[str, Run]:
    """One picture sampled without guidance: plain, and with two trajectories riding along."""
    side = pixels // 8
    content, style = (trajectory(model, kind, side, seed) for seed in (1, 2))
    family = map_model(model).family
    painted = add_patch(model, StyleID(content, style, Scope(family.weights(STYLEID))))
    runs = {"plain, CFG 1": model, "StyleID, CFG 1": painted}
    return {name: partial(sample, patched, kind, side, STEPS, cfg=1.0) for name, patched in runs.items()}


def trajectory(model: Any, kind: Family, side: int, seed: int) -> ReferenceTrajectory:
    """Noise at every level of the schedule."""
    generator = torch.Generator().manual_seed(seed)
    sigmas = model.get_model_object("model_sampling").sigmas.tolist()
    latents = torch.randn((1, 1, 4, side, side), generator=generator).expand(len(sigmas), -1, -1, -1, -1)
    context = torch.randn((1, 77, TEXT_WIDTH[kind]), generator=generator)
    vector = torch.randn((1, POOLED_WIDTH + SIZE_CONDITIONING_WIDTH), generator=generator) if kind == "sdxl" else None
    return ReferenceTrajectory(latents, tuple(sigmas), STEPS, "styleid", stamp_of(model), context, vector)


def kept_bytes(steps: int, pixels: int) -> int:
    """What StyleID adds beyond the model and its activations: both trajectories, on the CPU."""
    side = pixels // 8
    return 2 * (steps + 1) * 4 * side * side * 4
