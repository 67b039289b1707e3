"""Regions put a picture each on a model, as ComfyUI_IPAdapter_plus' params do."""

from __future__ import annotations

import pytest

from semblance.host.ip_adapter.applying import Listening, apply_source
from semblance.host.ip_adapter.regions import Region
from semblance.host.ip_adapter.sources import PictureReader
from semblance.tests.support.frozen_cases import furthest
from semblance.tests.support.oracles import oracle_clip_vision, oracle_unet

from .frozen_applications import FACTS, TENSORS, adapter_of, images, masks, predicted_noise


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_regions_equal_the_params_of_ipadapter_plus(kind: str) -> None:
    name = f"{kind}.params.two_regions"
    (node,) = FACTS["forward"][name]
    regions = tuple(
        Region(
            images(one["image"]),
            one["image_weight"],
            one["weight_type"],
            one["start_at"],
            one["end_at"],
            masks(one["mask"]),
        )
        for one in node["params"]
    )
    reader = PictureReader(adapter_of(kind, node["adapter"]), oracle_clip_vision())
    model = apply_source(oracle_unet(kind), reader, regions, Listening())
    assert furthest(predicted_noise(model, kind), TENSORS[f"out.{name}"]) <= 1e-5
