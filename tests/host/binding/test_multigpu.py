"""MultiGPU CFG Split sends each conditioning to a device of its own, at once; every method is right or refused.

There is one device here under two names, which ComfyUI's own splitting takes for two: it loads a second model, starts
a thread for each, and sends one conditioning to either.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import comfy.multigpu
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from semblance.attention.engine.bank import FeatureBank
from semblance.attention.engine.call import AttentionCall, AttentionSite
from semblance.attention.engine.layout import BatchLayout
from semblance.attention.engine.moment import Moment
from semblance.attention.subjects.recorder import SubjectRecorder
from semblance.host.binding.model import patches_on
from semblance.host.binding.noise_schedule import NoiseSchedule
from semblance.tests.support.speeds import slow
from semblance.tests.support.studio import STORIES, Studio, relative_error, wrap

SECOND = torch.device("cpu", 1)
STYLES = (
    *("instantstyle", "instantstyle plus", "instantstyle masked", "instantstyle regions"),
    *("ip-adapter swapped", "ip-adapter per image"),
)


@pytest.fixture
def second_device(monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.model_management

    devices = [torch.device("cpu"), SECOND]
    monkeypatch.setattr(comfy.model_management, "get_all_torch_devices", lambda exclude_current=False: devices)


def split(model: ModelPatcher) -> ModelPatcher:
    """What the MultiGPU CFG Split node returns."""
    made = comfy.multigpu.create_multigpu_deepclones(model, 2)
    assert len(made.get_additional_models_with_key("multigpu")) == 1
    return made


def watched(model: ModelPatcher) -> tuple[ModelPatcher, set[tuple[int, int, int]]]:
    """The network, the thread and the number of conditionings of each call of the model."""
    from comfy.patcher_extension import WrappersMP

    calls: set[tuple[int, int, int]] = set()

    def watch(executor: Any, *given: Any, **named: Any) -> Tensor:
        numbers = given[-1]["cond_or_uncond"]
        calls.add((id(executor.class_obj), threading.get_ident(), len(numbers)))
        return executor(*given, **named)

    return wrap(model, WrappersMP.DIFFUSION_MODEL, watch), calls


@pytest.mark.parametrize(
    "name", [STYLES[0], *map(slow, STYLES[1:]), "styleid", *map(slow, ("styleid masked", "reference style"))]
)
@pytest.mark.parametrize("ours_first", [True, False], ids=["ours before", "ours after"])
def test_a_method_split_over_two_devices_is_the_method_on_one(
    sd15: Studio, second_device: None, name: str, ours_first: bool
) -> None:
    model = split(sd15.with_patch(name)) if ours_first else sd15.with_patch(name, split(sd15.model))
    model, calls = watched(model)
    made = sd15.sample(model)
    assert len({network for network, _, _ in calls}) == len({thread for _, thread, _ in calls}) == 2
    assert {count for _, _, count in calls} == {1}
    assert relative_error(made, sd15.patched(name)) < 1e-5
    assert relative_error(made, sd15.plain) > 1e-3
    assert relative_error(sd15.sample(split(sd15.model)), sd15.plain) < 1e-5


@pytest.mark.parametrize("name", sorted(STORIES))
@pytest.mark.parametrize("ours_first", [True, False], ids=["ours before", "ours after"])
def test_a_story_split_over_two_devices_is_refused_before_the_first_step(
    sd15: Studio, second_device: None, name: str, ours_first: bool
) -> None:
    model = split(sd15.with_patch(name)) if ours_first else sd15.with_patch(name, split(sd15.model))
    model, calls = watched(model)
    with pytest.raises(ValueError, match="spread over 2 GPUs, .* Bypass MultiGPU CFG Split."):
        sd15.sample(model)
    assert not calls


def test_a_recording_split_over_two_devices_is_refused(sd15: Studio, second_device: None) -> None:
    from semblance.host.binding.model import exchange_patch

    model = sd15.with_patch("consistory")
    (story,) = patches_on(model)
    recording: Any = replace(story, recorder=SubjectRecorder())  # pyright: ignore[reportCallIssue]
    with pytest.raises(ValueError, match="spread over 2 GPUs"):
        sd15.sample(split(exchange_patch(model, story, recording)))


@pytest.mark.parametrize("name", STYLES)
def test_what_a_run_keeps_is_kept_for_each_device(sd15: Studio, name: str) -> None:
    """One bank serves both; what was brought to one device is not handed to the other."""
    (patch,) = patches_on(sd15.with_patch(name))
    site = AttentionSite("cross", "input", 1)
    width = sd15.model_map.widths[site]
    layout = BatchLayout.from_numbers([0], 3, (8, 8))
    moment = Moment(8.0, 0, 2, 0.1, NoiseSchedule(sd15.model.get_model_object("model_sampling")).sigma_at)
    bank = FeatureBank()
    for device in ("cpu", "meta", "cpu"):
        query = torch.zeros(3, 64, width, device=device)
        key = torch.zeros(3, 77, width, device=device)
        call = AttentionCall(site, layout, moment, 8, 8, 8, query, key, key)
        assert patch.edit_output(call, query, attend, bank).device.type == device


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(query, key, value)
