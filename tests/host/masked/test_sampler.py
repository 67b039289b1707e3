"""What the sampler of a masked transformer keeps of a latent, and what it refuses to sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion
from torch import Tensor

import nodes
from semblance.attention.functional.masked_tokens import mask_ratios, one_hot
from semblance.host.masked.sampler import DECODERS, Decoder, MaskSchedule, masked_sampler
from semblance.host.masked.sampling import MaskedSampling
from semblance.tests.support.amused import CODEBOOK, PIXELS
from semblance.tests.support.amused_runs import NEGATIVE, POSITIVE
from semblance.tests.tiny_models import make_controlnet, make_unet

from .conftest import Pair

SIDE, SEEN = 8, 8 * PIXELS
SCHEDULE = MaskSchedule(8, (2.0, 0.0))
EMPTY = torch.zeros(1, CODEBOOK, SIDE, SIDE)


def encoded() -> Tensor:
    tokens = torch.randint(CODEBOOK, (1, SIDE, SIDE), generator=torch.Generator().manual_seed(3))
    return one_hot(tokens, CODEBOOK)


def right_half() -> Tensor:
    mask = torch.zeros(1, SEEN, SEEN)
    mask[:, :, SEEN // 2 :] = 1
    return mask


def masked(latent: Tensor) -> int:
    return int((latent.sum(dim=1) == 0).sum())


def sample(model: Any, latent: Tensor = EMPTY, mask: Tensor | None = None, **named: Any) -> Tensor:
    conds = named.get("conds", (POSITIVE.conditioning, NEGATIVE.conditioning))
    schedule, sigmas = named.get("schedule", SCHEDULE), named.get("sigmas", SCHEDULE.sigmas())
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(*conds)
    seed, callback = named.get("seed", 1), named.get("callback")
    sampler = masked_sampler(schedule)
    return guider.sample(
        torch.zeros_like(latent), latent, sampler, sigmas, mask, callback=callback, disable_pbar=True, seed=seed
    )


@pytest.mark.parametrize("cut", [2, 6])
def test_a_noise_mask_adds_nothing_to_a_run_that_is_cut_in_two(pair: Pair, cut: int) -> None:
    """The second sampler keeps what the first has found, and masks as many tokens as the run in one piece."""
    model, latent, sigmas = pair[1].model, encoded(), SCHEDULE.sigmas()
    counts: dict[str, list[int]] = {"whole": [], "halves": []}

    def counting(kind: str) -> Callable[..., None]:
        return lambda step, denoised, x, total: counts[kind].append(masked(x))

    sample(model, latent, right_half(), callback=counting("whole"))
    half = sample(model, latent, right_half(), sigmas=sigmas[: cut + 1], callback=counting("halves"))
    made = sample(model, half, right_half(), sigmas=sigmas[cut:], seed=2, callback=counting("halves"))
    assert counts["halves"] == counts["whole"]
    assert torch.equal(made * half, half) and masked(made) == 0


def test_an_empty_latent_is_found_whole_beside_a_noise_mask(pair: Pair) -> None:
    assert masked(sample(pair[1].model, EMPTY, right_half())) == 0


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_latent_of_one_token_is_found(pair: Pair, decoder: Decoder) -> None:
    schedule = MaskSchedule(8, (2.0, 0.0), decoder)
    assert masked(sample(pair[1].model, torch.zeros(1, CODEBOOK, 1, 1), schedule=schedule)) == 0


def test_a_window_ends_on_the_step_that_it_names() -> None:
    sampling = MaskedSampling()
    for steps in range(1, 101):
        ratios = mask_ratios(steps)
        assert [sampling.percent_to_sigma(k / steps) for k in range(1, steps + 1)] == ratios[1:].tolist(), steps


# What is refused


def refused(action: Callable[[], Any]) -> str:
    with pytest.raises(ValueError) as fault:
        action()
    return str(fault.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_make_no_picture(pair: Pair, value: float) -> None:
    model = pair[1].model.clone()
    model.set_model_sampler_post_cfg_function(lambda told: told["denoised"].index_fill(1, torch.tensor([3]), value))
    assert "predicted values that are no numbers" in refused(lambda: sample(model))


def test_a_token_may_be_ruled_out(pair: Pair) -> None:
    model, ruled_out = pair[1].model.clone(), torch.tensor([3])
    model.set_model_sampler_post_cfg_function(lambda told: told["denoised"].index_fill(1, ruled_out, -torch.inf))
    made = sample(model)
    assert masked(made) == 0 and not made[:, 3].any()


def test_a_noise_mask_that_masks_no_token_is_refused(pair: Pair) -> None:
    thin = torch.zeros(1, SEEN, SEEN)
    thin[:, :, SEEN // 2] = 1
    assert "The noise mask masks no token" in refused(lambda: sample(pair[1].model, encoded(), thin))


def test_differential_diffusion_is_refused(pair: Pair) -> None:
    model = DifferentialDiffusion.execute(pair[1].model, 1.0)[0]
    message = refused(lambda: sample(model, encoded(), right_half()))
    assert "Bypass Differential Diffusion" in message
    assert masked(sample(model)) == 0


def test_a_unet_is_refused() -> None:
    text = [[torch.zeros(1, 77, 768), {}]]
    message = refused(lambda: sample(make_unet("sd15"), torch.zeros(1, 4, 8, 8), conds=(text, text)))
    assert "Load the model with Load Masked Transformer" in message


def test_controlnet_and_gligen_are_refused_by_name(pair: Pair) -> None:
    apply, picture = nodes.ControlNetApplyAdvanced().apply_controlnet, torch.rand(1, SEEN, SEEN, 3)
    conds = apply(POSITIVE.conditioning, NEGATIVE.conditioning, make_controlnet("sd15"), picture, 1.0, 0.0, 1.0)
    assert "ControlNet acts on the UNet" in refused(lambda: sample(pair[1].model, conds=conds))
    gligen = [[POSITIVE.context, {"pooled_output": POSITIVE.pooled, "gligen": ("position", None, [])}]]
    message = refused(lambda: sample(pair[1].model, conds=(gligen, NEGATIVE.conditioning)))
    assert "GLIGEN acts on the UNet" in message


def test_pictures_of_blended_or_scaled_tokens_are_refused(pair: Pair) -> None:
    vae, latent = pair[1].vae, encoded()
    blended = (latent + latent.flip(-1)) / 2
    for decode in (vae.decode, vae.decode_tiled):
        for wrong in (blended, latent * 2):
            assert "This latent is not made of tokens" in refused(lambda d=decode, w=wrong: d(w))
