"""Ladders and single steps equal LDM's and diffusers' on a linear network, eps = 0.5 x."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from semblance.attention.functional.inversion import (
    ddim_inverse_input,
    ddim_inverse_step,
    ddim_step,
    inversion_timesteps,
    sampling_timesteps,
)
from semblance.tests.support.frozen_cases import load_reference

CASE, FACTS = load_reference("schedules")
SIGMAS = CASE["sigmas_f64"].tolist()
COUNTS = sorted(FACTS["N"])


def denoised(x: Tensor, sigma: float) -> Tensor:
    """What the toy network leaves of x: its noise is half of what it is fed."""
    return x - sigma * 0.5 * x / math.sqrt(1 + sigma**2)


def fed(x: Tensor, sigma: float) -> Tensor:
    return x / math.sqrt(1 + sigma**2)


@pytest.mark.parametrize("steps", COUNTS)
def test_the_styleid_ladder_passes_the_states_of_the_authors_code(steps: int) -> None:
    levels = [SIGMAS[timestep] for timestep in inversion_timesteps(steps, "styleid")]
    x = CASE[f"N{steps}.toy.x"].double() * math.sqrt(1 + levels[0] ** 2)
    states = []
    for sigma, target in zip(levels, levels[1:], strict=False):
        x = ddim_step(x, denoised(x, sigma), sigma, target)
        states.append(fed(x, target))
    theirs = CASE[f"N{steps}.toy.inverted_by_t_desc"].flip(0)
    made = torch.cat(states[: len(theirs)]).reshape(theirs.shape)
    assert torch.allclose(made.float(), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", COUNTS)
def test_the_ddim_ladder_ends_where_diffusers_does(steps: int) -> None:
    levels = [SIGMAS[timestep] for timestep in inversion_timesteps(steps, "ddim")]
    x = CASE[f"N{steps}.toy.x"].double() * math.sqrt(1 + levels[0] ** 2)
    for sigma, target in zip(levels, levels[1:], strict=False):
        seen = ddim_inverse_input(x, sigma, target)
        x = ddim_inverse_step(x, seen, denoised(seen, target), sigma, target, predicts_v=False)
    theirs = CASE[f"N{steps}.toy.inverted_diffusers"]
    assert torch.allclose(fed(x, levels[-1]).reshape(theirs.shape).float(), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", COUNTS)
def test_sampling_ends_where_both_do(steps: int) -> None:
    levels = [SIGMAS[timestep] for timestep in [*sampling_timesteps(steps)[::-1], 0]]
    x = CASE[f"N{steps}.toy.x"].double() * math.sqrt(1 + levels[0] ** 2)
    for sigma, target in zip(levels, levels[1:], strict=False):
        x = ddim_step(x, denoised(x, sigma), sigma, target)
    for name in ("sampled_ldm", "sampled_diffusers"):
        theirs = CASE[f"N{steps}.toy.{name}"]
        assert torch.allclose(fed(x, levels[-1]).reshape(theirs.shape).float(), theirs, rtol=1e-4, atol=1e-4), name


def test_a_step_by_v_and_one_by_noise_agree_where_both_say_the_same() -> None:
    """A network of either kind that finds the same picture at the target's level moves x alike, if it is right."""
    clean, noise = torch.randn(2, 1, 4, 4, 4, generator=torch.Generator().manual_seed(1)).double()
    sigma, target = 1.3, 2.1
    x, there = clean + sigma * noise, clean + target * noise
    for predicts_v in (False, True):
        seen = there if not predicts_v else ddim_inverse_input(x, sigma, target)
        if predicts_v:
            size = math.sqrt(1 + sigma**2)
            velocity = (noise - sigma * clean) / size  # the v of x itself, which is what is kept
            found = seen / (1 + target**2) - velocity * target / math.sqrt(1 + target**2)
        else:
            found = clean
        assert torch.allclose(ddim_inverse_step(x, seen, found, sigma, target, predicts_v), there)
