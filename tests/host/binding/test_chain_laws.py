"""Laws of what stands around a sampler: a second one that goes on, and the attention that GPUs use."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import nodes
from semblance.tests.support.pretend_gpu import attention_of_gpus
from semblance.tests.support.speeds import slow_but
from semblance.tests.support.studio import PATCHES, STORIES, Studio, relative_error, told_on

CARRY = {"remembers"}
"""Patches of which something must go on that no LATENT carries."""
STEPS = 4


def in_parts(studio: Studio, name: str, *cuts: int) -> Tensor:
    """What KSampler (Advanced) makes one after another, the noise left over handed on; the start holds its noise."""
    latent: Any = studio.noisy_latent(2, (8, 8), seed=1)
    model = studio.with_patch(name)
    texts = (told_on(model, studio.positive), studio.negative)
    for start, end in zip((0, *cuts), (*cuts, STEPS), strict=True):
        settings = (model, 1, STEPS, 4.0, "euler", "simple", *texts, latent)
        (latent,) = nodes.common_ksampler(
            *settings, disable_noise=True, start_step=start, last_step=end, force_full_denoise=end == STEPS
        )
    return latent["samples"]


@pytest.mark.parametrize("name", slow_but(sorted(PATCHES.keys() - CARRY - STORIES), ("instantstyle",)))
def test_two_samplers_equal_one(sd15: Studio, name: str) -> None:
    assert relative_error(in_parts(sd15, name, 2), in_parts(sd15, name)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(STORIES))
def test_a_story_that_copies_parts_refuses_to_be_cut(sd15: Studio, name: str) -> None:
    with pytest.raises(ValueError, match="Set injection to 0, let one sampler take all steps"):
        in_parts(sd15, name, 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", PATCHES)
def test_with_the_attention_of_gpus_a_patch_does_the_same(sd15: Studio, name: str, monkeypatch: Any) -> None:
    """The tests' ComfyUI runs on the CPU, where it takes another kernel."""
    expected = sd15.patched(name)
    with attention_of_gpus():
        together, idle = sd15.sample(sd15.with_patch(name)), sd15.sample(sd15.with_patch(name, strength=0.0))
        assert torch.equal(idle, sd15.sample())
        monkeypatch.setattr("comfy.model_patcher.ModelPatcher.get_free_memory", lambda self, device: 1)
        apart = sd15.sample(sd15.with_patch(name))
    assert relative_error(together, expected) < 1e-4
    assert relative_error(apart, together) < 1e-4
