"""Memory foretold is what a step of the real UNets takes, and real sizes fit the cards they are meant for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from comfy.model_patcher import ModelPatcher

from semblance.attention.adapters.style_adapter import FORMS
from semblance.bench.sizes import Calls, plain, weightless
from semblance.bench.tuning import foretold, parameters, recipe, step
from semblance.host.styledrop.examples import Example
from semblance.host.styledrop.memory import GB, MB, estimate, said_before
from semblance.tests.support.speeds import slow
from semblance.tests.tiny_models import Family, make_conditioning

from .conftest import examples
from .conftest import recipe as short


def example(side: int) -> Example:
    return Example(torch.empty(4, side, side, device="meta"), make_conditioning())


@pytest.mark.parametrize(("kind", "share"), [("sd15", 0.0019), ("sdxl", 0.0041)])
def test_a_bottleneck_at_every_attention_has_the_papers_share_of_the_model(kind: Family, share: float) -> None:
    adapter, model = parameters(kind, "bottleneck")
    assert adapter / model == pytest.approx(share, abs=5e-5)
    assert adapter == pytest.approx({"sd15": 1.60e6, "sdxl": 10.65e6}[kind], rel=5e-3)


@pytest.mark.parametrize(
    ("kind", "pixels", "form", "checkpointing"),
    [
        ("sd15", 512, "bottleneck", True),
        ("sd15", 512, "lora", False),
        slow(("sd15", 768, "bottleneck", False)),
        slow(("sdxl", 512, "bottleneck", True)),
        slow(("sdxl", 1024, "bottleneck", False)),
        slow(("sdxl", 1024, "lora", True)),
    ],
)
def test_activations_are_foretold(kind: Family, pixels: int, form: Any, checkpointing: bool) -> None:
    size = step(kind, pixels, form, checkpointing)
    assert 0.95 <= foretold(kind, pixels, form, checkpointing) / size.peak <= 1.25
    base = plain(Calls(kind, pixels, 1, guided=False))
    assert 2.0 <= size.operations / base.operations <= (3.3 if checkpointing else 2.5)


@pytest.mark.parametrize(
    ("kind", "side", "card", "dear"), [("sd15", 64, 8 * GB, 3 * GB), ("sdxl", 128, 24 * GB, 12 * GB)]
)
@pytest.mark.parametrize("form", FORMS)
def test_real_sizes_fit_the_cards_that_they_are_meant_for(
    kind: Family, side: int, card: int, dear: int, form: Any
) -> None:
    """SD 1.5 at 512 px into 8 GB and SDXL at 1024 px into 24 GB, in half precision."""
    model = weightless(kind)
    on, off = (estimate(model, [example(side)], recipe(model, form, checkpointing)) for checkpointing in (True, False))
    # On this CPU fp16 is widened to fp32, which doubles all but the adapter.
    half_on, half_off = ((size.weights + size.activations) / 2 + size.adapter for size in (on, off))
    assert half_on < half_off < dear < card
    assert on.activations < 0.5 * off.activations and on.weights == off.weights


def test_several_rows_and_larger_pictures_take_as_much_more(model_of: Callable[..., ModelPatcher]) -> None:
    model = model_of()
    one = estimate(model, [example(8)], short(model)).activations
    assert estimate(model, [example(8)], short(model, batch=3)).activations == pytest.approx(3 * one)
    assert estimate(model, [example(8), example(16)], short(model)).activations == pytest.approx(4 * one)


def test_what_does_not_fit_the_device_is_said_before_it_starts(
    model_of: Callable[..., ModelPatcher], monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management

    model = model_of()
    memory = estimate(model, examples().each, short(model))
    assert said_before(memory, torch.device("cpu"), short(model)).startswith("Tuning takes about ")
    for total, warned in ((1 * MB, True), (8 * GB, False)):
        monkeypatch.setattr(comfy.model_management, "get_total_memory", lambda device, total=total: total)
        said = said_before(memory, torch.device("cuda"), short(model))
        assert ("turn gradient_checkpointing on" in said) is warned


def test_what_is_set_already_is_not_advised(
    model_of: Callable[..., ModelPatcher], monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management

    model, cuda = model_of(), torch.device("cuda")
    monkeypatch.setattr(comfy.model_management, "get_total_memory", lambda device: 1 * MB)
    memory = estimate(model, examples().each, short(model))
    assert said_before(memory, cuda, short(model, gradient_checkpointing=True)).endswith("): take smaller pictures.")
    said = said_before(memory, cuda, short(model, batch=2))
    assert said.endswith("): turn gradient_checkpointing on, or set batch to 1, or take smaller pictures.")


def test_the_host_is_told_of_the_memory_before_the_copy_is_loaded(
    model_of: Callable[..., ModelPatcher], monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management

    from semblance.host.styledrop.tuning import tune

    model, told = model_of(), []
    load = comfy.model_management.load_models_gpu

    def noted(models: Any, memory_required: float = 0, **named: Any) -> None:
        told.append(memory_required)
        load(models, memory_required, **named)

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", noted)
    tune(model, examples(), short(model, steps=1))
    assert told == [round(estimate(model, examples().each, short(model)).beside_weights)]
