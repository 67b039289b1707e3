"""What Apply IP-Adapter does on purpose otherwise than IPAdapter_plus, as docs/from-ipadapter-plus.md has it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from semblance.host.instantstyle.adapter import LoadedAdapter, manage_adapter
from semblance.nodes.apply_adapter import ApplyAdapter
from semblance.tests.support.graphs import picture, relative_error, run, sampled
from semblance.tests.support.old_nodes import DEFAULTS
from semblance.tests.tiny_models import (
    Family,
    adapter_state_dict,
    empty_latent,
    ksampler,
    make_clip_vision,
    make_conditioning,
    make_unet,
)


def on_model(model: Any, adapter: LoadedAdapter, **settings: Any) -> Any:
    return run(ApplyAdapter, model=model, ipadapter=adapter, image=picture(1), **{**DEFAULTS, **settings})[0]


def adapter_with(encoder: Any, kind: Family = "sd15") -> LoadedAdapter:
    return replace(manage_adapter(kind, adapter_state_dict(kind)), encoder=encoder)


def test_a_mask_follows_the_area_of_the_conditioning() -> None:
    """White in the area alone is white everywhere to a conditioning that is computed in the area alone."""
    model, adapter = make_unet("sd15"), adapter_with(make_clip_vision("h"))
    right = {"area": (16, 8, 0, 8), "strength": 1.0, "set_area_to_bounds": False}
    positive = [[tokens, {**settings, **right}] for tokens, settings in make_conditioning("sd15", seed=1)]
    mask = torch.zeros(1, 128, 128)
    mask[:, :, 64:] = 1

    def on_the_right(patched: Any) -> torch.Tensor:
        return ksampler(patched, positive, make_conditioning("sd15", seed=2), empty_latent(1), steps=2, cfg=1.0)

    everywhere = on_the_right(on_model(model, adapter))
    assert relative_error(everywhere, on_the_right(model)) > 1e-4
    assert relative_error(on_the_right(on_model(model, adapter, attn_mask=mask)), everywhere) < 1e-6
    assert torch.equal(on_the_right(on_model(model, adapter, attn_mask=1 - mask)), on_the_right(model))


def test_an_encoder_whose_width_is_no_square_takes_pictures_in_tiles() -> None:
    model, adapter = make_unet("sdxl"), adapter_with(make_clip_vision("g"), "sdxl")
    whole = sampled(on_model(model, adapter), "sdxl")
    tiled = sampled(on_model(model, adapter, enhance_tiles=2), "sdxl")
    assert torch.isfinite(tiled).all()
    assert relative_error(tiled, whole) > 1e-4
