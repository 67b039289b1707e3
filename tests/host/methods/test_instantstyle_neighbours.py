"""A ControlNet and a LoRA in the same graph change what they should and nothing else."""

from __future__ import annotations

from typing import Any

import comfy.controlnet
import pytest
import torch
from torch import Tensor

from semblance.attention.adapters.checkpoint import flatten
from semblance.attention.engine.scope import Scope
from semblance.attention.methods.instantstyle import InstantStyle
from semblance.attention.references.style import StyleReference
from semblance.host.binding.model import add_patch, map_model
from semblance.host.instantstyle.adapter import LoadedAdapter, manage_adapter
from semblance.tests.support.speeds import one_family
from semblance.tests.tiny_models import (
    Family,
    adapter_state_dict,
    empty_latent,
    ksampler,
    make_conditioning,
    make_controlnet,
    make_unet,
    with_lora,
)


def adapter_for(kind: Family) -> LoadedAdapter:
    return manage_adapter("tiny", flatten(adapter_state_dict(kind, "base")))


def styled(model: Any, adapter: LoadedAdapter) -> Any:
    picture = torch.randn((1, adapter.layout.clip_width), generator=torch.Generator().manual_seed(3))
    tokens = adapter.image_tokens(StyleReference((picture,), torch.zeros_like(picture), (1.0,)))
    model_map = map_model(model)
    patch = InstantStyle(tokens, adapter, adapter.numbers_for(model_map), Scope(model_map.family.preset("all")))
    return add_patch(model, patch)


def sample(model: Any, kind: Family, control: comfy.controlnet.ControlNet | None = None) -> Tensor:
    positive, negative = make_conditioning(kind), make_conditioning(kind, seed=5)
    if control is not None:
        hint = torch.rand((1, 3, 128, 128), generator=torch.Generator().manual_seed(4))
        for conditioning in (positive, negative):
            conditioning[0][1]["control"] = control.copy().set_cond_hint(hint, 0.8, (0.0, 1.0))
            conditioning[0][1]["control_apply_to_uncond"] = False
    return ksampler(model, positive, negative, empty_latent(2))


@one_family()
def test_a_lora_acts_under_a_style_and_the_order_of_the_nodes_does_not_matter(kind: Family) -> None:
    plain, adapter = make_unet(kind), adapter_for(kind)
    before = sample(plain, kind)
    lora_first, style_first = styled(with_lora(plain), adapter), with_lora(styled(plain, adapter))
    both = sample(lora_first, kind)
    assert torch.equal(both, sample(style_first, kind))
    for one in (plain, with_lora(plain), styled(plain, adapter)):
        assert (both - sample(one, kind)).abs().mean() > 0.01 * both.abs().mean()
    assert torch.equal(sample(plain, kind), before)


@one_family()
def test_a_lora_leaves_the_image_keys_of_an_adapter_alone(kind: Family) -> None:
    adapter = adapter_for(kind)
    tokens = torch.randn((1, 4, adapter.layout.text_width), generator=torch.Generator().manual_seed(2))
    before = [part.clone() for part in adapter.keys_values(1, tokens)]
    sample(styled(with_lora(make_unet(kind)), adapter), kind)
    for part, kept in zip(adapter.keys_values(1, tokens), before, strict=True):
        assert torch.equal(part, kept)


@one_family()
def test_a_controlnet_acts_under_a_style_and_sees_none_of_it(kind: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, adapter = make_unet(kind), adapter_for(kind)
    control = make_controlnet(kind)
    hints: list[dict[str, list[Tensor]]] = []
    get_control = comfy.controlnet.ControlNet.get_control

    def recorded(self: Any, *arguments: Any) -> Any:
        residuals = get_control(self, *arguments)
        hints.append({part: [r.clone() for r in rs if r is not None] for part, rs in residuals.items()})
        return residuals

    monkeypatch.setattr(comfy.controlnet.ControlNet, "get_control", recorded)
    controlled = sample(plain, kind, control)
    first_plain = hints[0]
    hints.clear()
    both = sample(styled(plain, adapter), kind, control)
    # At the first step both runs show the ControlNet the same latent, so its residuals must be the same.
    for part, residuals in hints[0].items():
        for mine, other in zip(residuals, first_plain[part], strict=True):
            assert torch.equal(mine, other)
    assert (both - controlled).abs().mean() > 0.01 * both.abs().mean()
    assert (both - sample(styled(plain, adapter), kind)).abs().mean() > 0.01 * both.abs().mean()
