"""InstantX's form computes what its own attention processor does: each head of a key is normalised, no value is."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from semblance.attention.adapters.checkpoint import flatten
from semblance.host.instantstyle.adapter import manage_adapter
from semblance.tests.support.flux_blocks import rewritten
from semblance.tests.support.flux_styles import CHANGED, FLUX, SAME, sampled, style_of, styled, written
from semblance.tests.support.studio import relative_error
from semblance.tests.tiny_models import flux_adapter_state_dict


def times(part: str, factor: float) -> dict[str, Tensor]:
    """The adapter with its key (k) or value (v) weights multiplied."""
    tensors = flux_adapter_state_dict("InstantX")
    return {name: tensor * (factor if f".to_{part}_ip." in name else 1.0) for name, tensor in tensors.items()}


def drawn(tensors: dict[str, Tensor], strength: float = 1.0) -> Tensor:
    return sampled(styled(FLUX.model(), style_of(manage_adapter("InstantX", flatten(tensors))), strength))


def test_values_are_not_normalised() -> None:
    """They were once, as in ComfyUI-IPAdapter-Flux; InstantX's own code leaves them as the file makes them."""
    expected = drawn(times("v", 1.0), strength=2.0)
    assert relative_error(drawn(times("v", 2.0)), expected) <= SAME
    assert relative_error(expected, drawn(times("v", 1.0))) > CHANGED


def test_keys_are_normalised() -> None:
    assert relative_error(drawn(times("k", 2.0)), drawn(times("k", 1.0))) <= 1e-4  # but for the epsilon


def test_the_epsilon_is_that_of_instantx() -> None:
    """It shows where keys are as small as it is: 1e-5."""
    tensors = times("k", 3e-3)
    style = style_of(manage_adapter("InstantX", flatten(tensors)))
    page = rewritten(FLUX, [replace(written(style), tensors=tensors)])
    found = sampled(styled(FLUX.model(), style))
    assert relative_error(found, sampled(page)) <= SAME
    assert relative_error(found, drawn(times("k", 1.0))) > CHANGED
    assert torch.isfinite(found).all()
