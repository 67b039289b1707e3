"""What a tuning does that goes on from an adapter without its state or with another seed, and what is said of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from comfy.model_patcher import ModelPatcher

from semblance.host.styledrop import tuning
from semblance.host.styledrop.adapter_weights import LARGEST_GRADIENT, AdapterWeights
from semblance.host.styledrop.draws import draws_of_step
from semblance.host.styledrop.going_on import differences
from semblance.host.styledrop.recipe import BETAS
from semblance.host.styledrop.tuning import tune
from semblance.tests.support.endings import Fault, raise_fault

from .conftest import examples, recipe

Models = Callable[..., ModelPatcher]


def test_without_its_state_an_adapter_goes_on_with_draws_that_are_not_behind_it(
    model_of: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, drawn = model_of(), []

    def noted(seed: int, step: int) -> torch.Generator:
        drawn.append(step)
        return draws_of_step(seed, step)

    monkeypatch.setattr(tuning, "draws_of_step", noted)
    bare = replace(tune(model, examples(), recipe(model, steps=2)).adapter, state=None)
    rest = tune(model, examples(), recipe(model, steps=2), start=bare).adapter
    assert drawn == [0, 1, 2, 3]
    assert rest.state is not None and rest.state.step == rest.settings["steps"] == 4


def test_after_a_start_without_its_state_going_on_again_equals_never_having_stopped(model_of: Models) -> None:
    model = model_of()
    bare = replace(tune(model, examples(), recipe(model, steps=2)).adapter, state=None)
    whole = tune(model, examples(), recipe(model, steps=3), start=bare).adapter
    half = tune(model, examples(), recipe(model, steps=1), start=bare).adapter
    rest = tune(model, examples(), recipe(model, steps=2), start=half).adapter
    assert all(torch.equal(whole.tensors[name], rest.tensors[name]) for name in whole.tensors)


def test_what_is_not_as_one_tuning_is_told(model_of: Models) -> None:
    model = model_of()
    start = tune(model, examples(), recipe(model, steps=1, seed=3)).adapter
    assert differences(None, recipe(model)) == differences(start, recipe(model, seed=3)) == []
    (seeds,) = differences(start, recipe(model, seed=4))
    assert "was tuned with seed 3 and goes on with seed 4" in seeds
    (bare,) = differences(replace(start, state=None), recipe(model, seed=3))
    assert "holds no tuning state, so the optimiser begins anew" in bare


def test_a_huge_gradient_is_shortened_to_norm_1_before_the_optimiser_sees_it(model_of: Models) -> None:
    model = model_of()
    given = recipe(model)
    tensors = {f"layer.{name}": torch.zeros(4, 4) for name in ("down", "up")}
    weights = AdapterWeights.on(torch.device("cpu"), tensors, given, None)
    for tensor in weights.tensors.values():
        tensor.grad = torch.full((4, 4), 1e6)
    weights.step(given.rate)
    stamp = tune(model, examples(), recipe(model, steps=1)).adapter.stamp
    state = weights.adapter(given, stamp, None, examples()).state
    assert state is not None
    moments = torch.cat([moment.flatten() for moment in state.first_moments.values()])
    assert moments.norm() == pytest.approx((1 - BETAS[0]) * LARGEST_GRADIENT, rel=1e-4)


def test_what_cannot_be_kept_does_not_hide_why_the_tuning_ended(
    model_of: Models, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_adapter(*_: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(AdapterWeights, "adapter", no_adapter)
    with pytest.raises(Fault):
        tune(model_of(), examples(), recipe(model_of()), on_step=raise_fault, keep=lambda _: None)
    assert "could not be kept: out of memory" in caplog.text
