"""Apply IP-Adapter equals ComfyUI_IPAdapter_plus on every frozen case, in float32."""

from __future__ import annotations

import pytest

from semblance.tests.support.frozen_cases import furthest
from semblance.tests.support.oracles import oracle_unet

from .frozen_applications import FACTS, TENSORS, apply, predicted_noise

SHARP = "K+V"
"""Scaled keys make attention sharp: there even attention in float64 lies 2e-5 from the frozen float32."""


@pytest.mark.parametrize("name", FACTS["forward"])
def test_a_forward_equals_that_of_ipadapter_plus(name: str) -> None:
    kind, _, _ = name.partition(".")
    model = oracle_unet(kind)
    for node in FACTS["forward"][name]:
        model = apply(model, kind, node)
    sharp = any(node.get("embeds_scaling") == SHARP for node in FACTS["forward"][name])
    assert furthest(predicted_noise(model, kind), TENSORS[f"out.{name}"]) <= (5e-5 if sharp else 1e-5)
