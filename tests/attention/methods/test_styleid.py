"""One layer of StyleID equals the authors' LDM code on frozen units."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from semblance.attention.engine.bank import FeatureBank
from semblance.attention.engine.call import AttentionCall, AttentionSite
from semblance.attention.engine.layout import BatchLayout, GuestRows
from semblance.attention.engine.moment import Moment
from semblance.attention.engine.scope import Scope
from semblance.attention.functional.statistics import adain
from semblance.attention.methods.styleid.injection import CONTENT, STYLE
from semblance.attention.methods.styleid.method import StyleID
from semblance.tests.support.frozen_cases import load_reference

CASE, FACTS = load_reference("styleid")


def distance(made: Tensor, expected: Tensor) -> float:
    return ((made - expected).norm() / expected.norm()).item()


def test_adain_equals_theirs() -> None:
    made = adain(CASE["adain_unit.content"], CASE["adain_unit.style"])
    assert distance(made, CASE["adain_unit.out"]) <= 1e-6


@pytest.mark.parametrize("name", sorted(key for key in CASE if key.startswith("attn_unit.out.gamma")))
def test_one_attention_equals_theirs(name: str) -> None:
    """Their layer takes features of other token counts; here the guests are rows of the same call."""
    gamma, temperature = (
        float(part[len(mark) :])
        for part, mark in zip(name.removeprefix("attn_unit.out.").split("_"), ("gamma", "T"), strict=True)
    )
    unit = {key.removeprefix("attn_unit."): tensor for key, tensor in CASE.items() if key.startswith("attn_unit.")}
    heads = FACTS["attn_unit"]["heads"]
    query, key, value = (nn.functional.linear(unit["x"], unit[f"w.to_{part}.weight"]) for part in "qkv")
    content, style_key, style_value = (
        unit[f"{part}_injected"].transpose(0, 1).flatten(1)[None] for part in ("q", "k", "v")
    )
    tokens = query.shape[1]
    rows = len(query)
    # The style has more tokens than the content: two calls, one for each half of what the patch reads.
    patch = StyleID(_nothing(), _nothing(), Scope({"output.6": 1.0}), gamma, temperature)
    layout = BatchLayout.from_numbers([0], rows, (4, 6))
    guests = (GuestRows(patch, CONTENT, 1), GuestRows(patch, STYLE, 1))
    layout = BatchLayout(layout.chunks, layout.images, layout.latent_size, guests)
    short = style_key.new_zeros(1, style_key.shape[1] - tokens, style_key.shape[2])

    def widened(own: Tensor, of_content: Tensor) -> Tensor:
        return torch.cat([torch.cat([own, short.expand(rows, -1, -1)], 1), torch.cat([of_content, short], 1)])

    call = AttentionCall(
        AttentionSite("self", "output", 6),
        layout,
        Moment(1.0, 0, 1, 0.5, lambda share: 1e9 * (1 - share)),
        4,
        6,
        heads,
        torch.cat([query, content, content]),
        torch.cat([widened(key, content), style_key]),
        torch.cat([widened(value, content), style_value]),
    )
    edited = patch.edit_inputs(call, FeatureBank())
    parts = (
        part[:rows].unflatten(-1, (heads, -1)).transpose(1, 2) for part in (edited.query, edited.key, edited.value)
    )
    made = nn.functional.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
    made = nn.functional.linear(made, unit["w.to_out.0.weight"], unit["w.to_out.0.bias"])
    assert distance(made, unit[name.removeprefix("attn_unit.")]) <= 1e-5


def _nothing() -> Any:
    return None
