"""IP-Adapters on Flux equal blocks that are written out with the adapter in them, in both published forms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from semblance.attention.adapters.checkpoint import flatten
from semblance.attention.engine.scope import ImageMask, ScheduleWindow, Scope
from semblance.attention.references.style import StyleReference
from semblance.host.binding.model import add_patch, patches_on
from semblance.host.instantstyle.adapter import LoadedAdapter, manage_adapter
from semblance.host.instantstyle.applying import map_styled, style_patch
from semblance.host.instantstyle.encoding import EncodedStyle
from semblance.tests.support.flux_blocks import WrittenAdapter, rewritten
from semblance.tests.support.studio import relative_error
from semblance.tests.support.transformers import TRANSFORMERS, TransformerFamily, sample
from semblance.tests.tiny_models import FLUX_FORMS, flux_adapter_state_dict
from semblance.tests.tiny_models.flux_adapters import FluxForm

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
    return add_patch(model, style_patch(style, model_map, Scope(weights, window or ScheduleWindow(), area), strength, "auto"))


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
    return sample(model, positive, negative, latent, **{"cfg": 1.0} | settings)


@BOTH_FORMS
@pytest.mark.parametrize("size", [(8, 8), (10, 6), (9, 7)], ids=["square", "wide", "odd"])
def test_a_style_equals_blocks_rewritten_with_the_adapter(form: FluxForm, size: tuple[int, int]) -> None:
    style = style_of(adapter_of(form))
    found = sampled(styled(FLUX.model(), style, strength=0.7), size=size)
    expected = sampled(rewritten(FLUX, [written(style, 0.7)]), size=size)
    assert relative_error(found, expected) <= SAME
    assert relative_error(found, sampled(FLUX.model(), size=size)) > CHANGED


def test_the_page_is_flux_where_no_adapter_is_in_it() -> None:
    assert relative_error(sampled(rewritten(FLUX, [])), sampled(FLUX.model())) <= SAME
