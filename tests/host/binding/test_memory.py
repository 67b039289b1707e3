"""Nothing piles up from run to run, and an adapter's weights come and go with the model."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import comfy.model_management
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from semblance.attention.engine.bank import FeatureBank
from semblance.attention.engine.call import AttentionCall
from semblance.attention.engine.patch import Attend
from semblance.attention.engine.scope import Scope
from semblance.host.binding.model import add_patch
from semblance.tests.support.endings import resident, tensors_alive
from semblance.tests.support.speeds import slow
from semblance.tests.support.studio import PATCHES, STORIES, Studio, guider_of, ladder, run_guider
from semblance.tests.support.toy_patches import Diary, ToyPatch


class Hoard(ToyPatch):
    """Remembers 4 MB a run."""

    def edit_output(self, call: AttentionCall, output: Tensor, attend: Attend, bank: FeatureBank) -> Tensor:
        bank.once("hoard", lambda: torch.ones(2**20))
        return output


@pytest.mark.parametrize("times", [10, slow(50)])
def test_runs_keep_no_tensor_and_no_memory(sd15: Studio, times: int) -> None:
    model = add_patch(sd15.model, Hoard(Scope({"output.5": 1.0})))
    for name in PATCHES.keys() - STORIES:
        model = sd15.with_patch(name, model)

    def run(times: int) -> None:
        for _ in range(times):
            sd15.sample(model, images=1, steps=1)

    run(5)  # what ComfyUI and torch keep for themselves
    tensors, megabytes = tensors_alive(), resident()
    run(times)
    assert tensors_alive() == tensors
    assert resident() - megabytes < 32  # of 40 or 200 remembered; malloc keeps a few for itself


@pytest.mark.slow
def test_fifty_models_patched_and_dropped_keep_no_tensor(sd15: Studio) -> None:
    def patch_and_run() -> None:
        for name in PATCHES:
            sd15.with_patch(name)
        sd15.sample(sd15.with_patch("instantstyle regions"), images=1, steps=1)

    patch_and_run()
    before = tensors_alive()
    for _ in range(10):
        patch_and_run()
    assert tensors_alive() == before


@pytest.fixture
def nothing_loaded() -> Iterator[None]:
    comfy.model_management.unload_all_models()
    yield
    comfy.model_management.unload_all_models()


def loaded(patcher: ModelPatcher) -> bool:
    return any(entry.model is patcher for entry in comfy.model_management.current_loaded_models)


@pytest.mark.parametrize("variant", ["base", "plus"])
def test_adapter_weights_are_loaded_for_the_run_and_freed_with_the_rest(
    studio: Studio, variant: str, nothing_loaded: None
) -> None:
    adapter = studio.adapters[variant]
    patch = studio.instantstyle(variant=variant)
    comfy.model_management.unload_all_models()
    model = add_patch(studio.model, patch, [adapter.patcher])
    assert model.model_patches_models() == [adapter.patcher]
    assert not loaded(adapter.patcher)
    during: list[bool] = []
    run_guider(guider_of(studio, model), ladder(studio, 1), callback=lambda *_: during.append(loaded(adapter.patcher)))
    assert during == [True]
    comfy.model_management.unload_all_models()
    assert not loaded(adapter.patcher)


def test_a_branch_carries_the_weights_of_all_its_patches_and_the_given_model_none(sd15: Studio) -> None:
    branch = sd15.with_patch("instantstyle plus", sd15.with_patch("instantstyle", sd15.with_patch("edits output")))
    assert branch.model_patches_models() == [sd15.adapters[name].patcher for name in ("base", "plus")]
    assert branch.clone().model_patches_models() == branch.model_patches_models()
    assert sd15.model.model_patches_models() == []


def test_weights_freed_between_two_runs_come_back(sd15: Studio, nothing_loaded: None) -> None:
    model = sd15.with_patch("instantstyle")
    before = sd15.sample(model)
    comfy.model_management.unload_all_models()
    assert torch.equal(sd15.sample(model), before)


def test_features_kept_during_a_run_do_not_outlive_it_in_the_patch(sd15: Studio) -> None:
    diary = Diary(Scope({"output.5": 1.0}))
    patch = sd15.instantstyle()
    state: dict[str, Any] = dict(vars(patch.tokens))
    sd15.sample(add_patch(add_patch(sd15.model, patch), diary), steps=1)
    gc.collect()
    assert [bank() for bank in diary.banks] == [None]
    assert set(vars(patch)) == {"tokens", "adapter", "numbers", "scope", "strength", "name"}
    assert all(vars(patch.tokens)[name] is value for name, value in state.items())
