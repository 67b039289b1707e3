"""A style on a tiny Flux, by an adapter of either published form, and the same on the page of `flux_blocks`."""

from __future__ import annotations

from typing import Any

import comfy.sample
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from semblance.attention.adapters.checkpoint import flatten
from semblance.attention.engine.scope import ImageMask, ScheduleWindow, Scope
from semblance.attention.references.style import StyleReference
from semblance.host.binding.model import add_patch
from semblance.host.instantstyle.adapter import LoadedAdapter, manage_adapter
from semblance.host.instantstyle.applying import map_styled, style_patch
from semblance.host.instantstyle.encoding import EncodedStyle

from ..tiny_models import FLUX_FORMS, flux_adapter_state_dict
from ..tiny_models.flux_adapters import FluxForm
from .flux_blocks import WrittenAdapter
from .transformers import TRANSFORMERS, TransformerFamily, sample

SAME = 1e-6
CHANGED = 1e-3
FLUX = TRANSFORMERS["flux"]
BOTH_FORMS = pytest.mark.parametrize("form", FLUX_FORMS)


def adapter_of(form: FluxForm, seed: int = 0) -> LoadedAdapter:
    return manage_adapter(form, flatten(flux_adapter_state_dict(form, seed=seed)))


def style_of(adapter: LoadedAdapter, pictures: int = 1) -> EncodedStyle:
    noise = torch.Generator().manual_seed(3)
    seen = torch.randn(pictures + 1, 1, adapter.layout.clip_width, generator=noise)
    return EncodedStyle(StyleReference(tuple(seen[1:]), seen[0], (1.0,) * pictures), adapter, "")


def styled(
    model: ModelPatcher,
    style: EncodedStyle,
    strength: float = 1.0,
    blocks: dict[str, float] | None = None,
    window: ScheduleWindow | None = None,
    mask: Tensor | None = None,
) -> ModelPatcher:
    model_map = map_styled(model)
    weights = model_map.family.preset("all") if blocks is None else blocks
    area = None if mask is None else ImageMask(mask)
    return add_patch(
        model, style_patch(style, model_map, Scope(weights, window or ScheduleWindow(), area), strength, "auto")
    )


def written(style: EncodedStyle, scale: float = 1.0, sides: tuple[bool, ...] = (True,), **more: Any) -> WrittenAdapter:
    """The same on the page; `sides` says of each row of a call whether it is conditional."""
    form: FluxForm = style.adapter.layout.form
    seed = int(style.adapter.name.rpartition(" ")[2]) if " " in style.adapter.name else 0
    with torch.no_grad():
        project = style.adapter.patcher.model.tokens
        rows = [project(style.reference.pictures[0] if side else style.reference.negative) for side in sides]
    return WrittenAdapter(flux_adapter_state_dict(form, seed=seed), torch.cat(rows), scale, **more)


def sampled(model: ModelPatcher, family: TransformerFamily = FLUX, **settings: Any) -> Tensor:
    latent = family.latent(settings.pop("images", 1), *settings.pop("size", (8, 8)))
    positive = settings.pop("positive", None) or family.conditioning()
    negative = settings.pop("negative", None) or family.conditioning(seed=2)
    if "noise" not in settings:
        return sample(model, positive, negative, latent, **{"cfg": 1.0} | settings)
    given = (model, settings["noise"], 2, settings["cfg"], "euler", "simple", positive, negative)
    with torch.inference_mode():
        return comfy.sample.sample(*given, torch.zeros_like(settings["noise"]), disable_pbar=True, seed=1)
