"""StyleDrop's adapter and its guidance with two scales equal the frozen cases of the public PyTorch port."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from semblance.attention.functional.bottleneck import bottleneck
from semblance.attention.functional.two_scales import two_scale_guidance, with_style
from semblance.tests.support.frozen_cases import furthest, load_reference

CASE, FACTS = load_reference("styledrop")
CONFIG = FACTS["config"]
TUNED, BASE, UNCONDITIONAL = (CASE[f"out.logits_{side}"] for side in ("adapter", "base", "uncond"))


def table(name: str, prefix: str = "uvit.w.adapter") -> Tensor:
    return CASE[f"{prefix}.{name}"].float()


def matrices(down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of the port's tables, (width * channels,), as matrices that a layer multiplies by."""
    return down.reshape(CONFIG["embed_dim"], -1).T, up.reshape(-1, CONFIG["embed_dim"]).T


@pytest.mark.parametrize("name", sorted(key for key in CASE if key.startswith("adapter_unit.out.")))
def test_a_layers_own_bottleneck_equals_theirs(name: str) -> None:
    layer = int(re.sub(r"\D", "", name))
    down, up = (table(f"{part}.weight")[layer] for part in ("WD", "WU"))
    hidden = CASE["adapter_unit.x"]
    assert furthest(hidden + bottleneck(hidden, *matrices(down, up)), CASE[name]) <= 1e-5


@pytest.mark.parametrize("name", sorted(key for key in CASE if key.startswith("adapter_unit.out_shared.")))
def test_a_bottleneck_that_all_layers_share_equals_theirs(name: str) -> None:
    """One table for all, and for each layer something added to every row of it."""
    layer = int(re.sub(r"\D", "", name))
    down, up, added_down, added_up = (table(f"{part}.weight", "adapter_shared.w") for part in ("WD", "WU", "DD", "DU"))
    shared_down, shared_up = matrices(down[0], up[0])
    own = shared_down + added_down[layer][:, None], shared_up + added_up[layer][:, None]
    hidden = CASE["adapter_unit.x"]
    assert furthest(hidden + bottleneck(hidden, *own), CASE[name]) <= 1e-5


def test_a_fresh_bottleneck_adds_nothing() -> None:
    hidden = CASE["adapter_unit.x"]
    assert not bottleneck(hidden, torch.randn(4, 32), torch.zeros(32, 4)).any()


def test_guidance_equals_theirs() -> None:
    style, text = CONFIG["lA"], CONFIG["lB"]
    guided = two_scale_guidance(TUNED, BASE, UNCONDITIONAL, style, text)
    assert furthest(guided, CASE["out.guidance_two_scale"]) <= 1e-4
    assert torch.equal(two_scale_guidance(TUNED, BASE, UNCONDITIONAL, 0.0, 0.0), CASE["out.guidance_zero_lambdas"])
    untuned = two_scale_guidance(BASE, BASE, UNCONDITIONAL, style, 3.0)
    assert furthest(untuned, CASE["out.guidance_plain_cfg_scale3"]) <= 1e-4


@pytest.mark.parametrize(("style", "text"), [(2.0, 5.0), (0.0, 6.5), (1.5, 0.0)])
def test_a_style_added_to_guidance_is_the_same_formula(style: float, text: float) -> None:
    guided = BASE + text * (BASE - UNCONDITIONAL)
    expected = two_scale_guidance(TUNED, BASE, UNCONDITIONAL, style, text)
    assert furthest(with_style(guided, TUNED, BASE, style), expected) <= 1e-4
    assert torch.equal(with_style(guided, BASE, BASE, style), guided)
