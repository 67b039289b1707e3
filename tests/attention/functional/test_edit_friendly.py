"""The formulas equal the authors' code on a small convolutional network, and lead back to the picture to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from semblance.attention.functional.edit_friendly import (
    Denoise,
    ddpm_inversion,
    ddpm_replay,
    ddpm_step,
    noised_states,
    state_scale,
    variance,
    with_noiseless_last_step,
)
from semblance.attention.functional.inversion import inversion_timesteps
from semblance.tests.support.frozen_cases import load_reference

CASE, FACTS = load_reference("edit_friendly")
CONV = {name.removeprefix("conv."): tensor for name, tensor in CASE.items() if name.startswith("conv.")}
RUN = FACTS["runs"]["conv"]
STEPS = FACTS["N"]
TIMESTEPS = inversion_timesteps(STEPS, "edit-friendly")
SCHEDULE = load_reference("schedules")[0]["sigmas_f64"].tolist()
SIGMAS = [SCHEDULE[timestep] for timestep in TIMESTEPS]


def noise_in(x: Tensor, timestep: int, context: Tensor) -> Tensor:
    """The network of the reference case."""
    told = CONV["w.wt"] * timestep / 1000 + CONV["w.wc.weight"] @ context.mean(dim=(0, 1))
    hidden = functional.conv2d(x, CONV["w.conv1.weight"], CONV["w.conv1.bias"], padding=1)
    hidden = functional.silu(hidden + told[None, :, None, None])
    shape = FACTS["conv_net"]
    return shape["a"] * x + shape["b"] * functional.conv2d(
        hidden, CONV["w.conv2.weight"], CONV["w.conv2.bias"], padding=1
    )


def denoise(positive: str, guidance: float) -> Denoise:
    """The network, guided from the unconditional text towards `positive`."""

    def denoised(x: Tensor, sigma: float) -> Tensor:
        timestep = TIMESTEPS[SIGMAS.index(sigma)]
        noise = noise_in(x, timestep, CONV["in.context_uncond"])
        noise = noise + guidance * (noise_in(x, timestep, CONV[f"in.context_{positive}"]) - noise)
        return state_scale(sigma) * x - sigma * noise

    return denoised


def inverted(positive: str, guidance: float) -> tuple[Tensor, Tensor]:
    """States and noises, the last of them kept."""
    noises = CONV["in.noises_in_draw_order"][:, None]
    states = noised_states(CONV["in.x0"], noises, SIGMAS)
    steps = list(ddpm_inversion(states, SIGMAS, denoise(positive, guidance), FACTS["eta"]))[::-1]
    return torch.stack([*(step.state for step in steps), states[-1]]), torch.stack([step.noise for step in steps])


def sampled(noises: Tensor, states: Tensor, skip: int, positive: str, guidance: float) -> Tensor:
    start = STEPS - skip
    *_, last = ddpm_replay(
        states[start], noises[:start], SIGMAS[: start + 1], denoise(positive, guidance), FACTS["eta"]
    )
    return last.state


@pytest.fixture(scope="module")
def source() -> tuple[Tensor, Tensor]:
    return inverted("src", FACTS["cfg_src"])


def furthest(made: Tensor, expected: Tensor) -> float:
    return float((made - expected).abs().max())


def test_the_ladder_is_theirs() -> None:
    assert RUN["timesteps"] == TIMESTEPS[:0:-1] and RUN["draw_order_timesteps"] == TIMESTEPS[1:]


def test_states_and_noises_equal_theirs(source: tuple[Tensor, Tensor]) -> None:
    states, noises = source
    assert furthest(states[:, 0], CONV["out.xts"]) <= 1e-5
    assert furthest(with_noiseless_last_step(noises)[:, 0], CONV["out.zs"]) <= 1e-3


def test_noises_without_a_prompt_equal_theirs() -> None:
    _, noises = inverted("uncond", 1.0)
    assert furthest(with_noiseless_last_step(noises)[:, 0], CONV["out.zs_unconditional"]) <= 1e-3


@pytest.mark.parametrize("skip", FACTS["skips"])
def test_samples_with_either_prompt_equal_theirs(source: tuple[Tensor, Tensor], skip: int) -> None:
    states, noises = source[0], with_noiseless_last_step(source[1])
    back = sampled(noises, states, skip, "src", FACTS["cfg_src"])
    assert furthest(back, CONV[f"out.recon_skip{skip}"]) <= 1e-4
    assert furthest(back, CONV["in.x0"]) == pytest.approx(RUN[f"recon_err_skip{skip}"], abs=1e-4)
    edited = sampled(noises, states, skip, "tar", FACTS["cfg_tar"])
    assert furthest(edited, CONV[f"out.edit_skip{skip}"]) <= 1e-2


@pytest.mark.parametrize("skip", FACTS["skips"])
def test_with_the_last_noise_kept_the_picture_comes_back_to_rounding(source: tuple[Tensor, Tensor], skip: int) -> None:
    back = sampled(source[1], source[0], skip, "src", FACTS["cfg_src"])
    assert torch.equal(back, source[0][0])
    assert furthest(back, CONV["in.x0"]) <= 1e-6


def test_the_variance_is_theirs() -> None:
    falling = [variance(sigma, target) for sigma, target in zip(SIGMAS[1:], SIGMAS, strict=False)][::-1]
    assert torch.allclose(torch.tensor(falling), CONV["variance"], rtol=1e-4, atol=1e-7)
    assert torch.equal(CONV["variance"], CASE["unet.variance"])


@pytest.mark.parametrize("name", sorted(key for key in CASE if ".unit.out.eta" in key))
def test_one_step_equals_theirs_at_every_eta(name: str) -> None:
    network, eta = name.split(".")[0], float(name.rpartition("eta")[2])
    unit: dict[str, Any] = {part: CASE[f"{network}.unit.{part}"] for part in ("x", "eps", "z")}
    place = TIMESTEPS.index(FACTS["runs"][network]["unit_t"])
    sigma, target = SIGMAS[place], SIGMAS[place - 1]
    denoised = unit["x"] * state_scale(sigma) - sigma * unit["eps"]
    made = ddpm_step(unit["x"], denoised, unit["z"], sigma, target, eta)
    assert furthest(made, CASE[name]) <= 1e-5
