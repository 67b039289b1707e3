"""The samplers of a masked transformer: tokens are found step by step, the surest first, as ComfyUI's SAMPLER."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import comfy.model_management
import comfy.samplers
import torch
from comfy.utils import model_trange
from torch import Tensor

from ...attention.functional.masked_tokens import (
    draw_tokens,
    draw_tokens_muse,
    gumbel,
    mask_ratios,
    one_hot,
    remask_amused,
    remask_muse,
    tokens_of,
)
from .checks import (
    MASKED,
    NEAR,
    check_conds,
    check_logits,
    check_model,
    check_noise_mask,
    check_sampling,
    check_sigmas,
    check_tokens,
)

Decoder = Literal["aMUSEd", "MUSE"]
STEPS, TEMPERATURE = 12, (2.0, 0.0)
"""Those of aMUSEd's authors; the temperature is that of the first and of the last step."""
DECODERS: tuple[Decoder, ...] = get_args(Decoder)
GUARD = "semblance_masked"
"""The name of the wrapper that keeps other samplers away."""


@dataclass(frozen=True)
class MaskSchedule:
    """What share of the tokens is masked before each of all steps, and how warm the choice of tokens is."""

    steps: int
    """Of a whole run; an image to image run takes the last of them."""
    temperature: tuple[float, float]
    """At the first and at the last step."""
    decoder: Decoder = "aMUSEd"

    def sigmas(self, last: int | None = None) -> Tensor:
        """The noise levels of the last steps, or of all, and the one at the end."""
        return mask_ratios(self.steps)[-(self.steps if last is None else last) - 1 :]

    def place(self, sigma: float) -> float:
        """After how many steps this share is masked; a whole number for one of the schedule's own."""
        place = math.acos(min(max(sigma, 0.0), 1.0)) * 2 / math.pi * self.steps
        near = round(place)
        return near if abs(float(mask_ratios(self.steps)[near]) - sigma) < NEAR else place

    def ratio(self, sigma: float, evenly: bool = False) -> Tensor:
        """The share at a noise level, to the decoder's last bit; or, `evenly`, that of a straight line."""
        dtype = torch.float32 if self.decoder == "aMUSEd" else torch.float64
        place = self.place(sigma)
        if evenly:
            return 1 - torch.tensor(place, dtype=dtype) / self.steps
        return mask_ratios(self.steps, dtype)[place] if isinstance(place, int) else torch.tensor(sigma, dtype=dtype)

    def warmth(self, sigma: float, following: float) -> float:
        """The temperature of the step from one noise level to the following."""
        start, end = self.temperature
        if self.decoder == "MUSE":
            return start + (end - start) * self.place(following) / self.steps
        place = self.place(sigma)
        if isinstance(place, int) and place < self.steps:
            return float(torch.linspace(start, end, self.steps)[place])
        return start + (end - start) * min(place / max(self.steps - 1, 1), 1.0)


def masked_sampler(schedule: MaskSchedule) -> comfy.samplers.KSAMPLER:
    """The SAMPLER of a schedule."""
    return comfy.samplers.KSAMPLER(sample_masked_tokens, {"schedule": schedule})


def sample_masked_tokens(
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], None] | None = None,
    disable: bool | None = None,
    schedule: MaskSchedule | None = None,
) -> Tensor:
    """ComfyUI's sampler function: finds the masked tokens of the one-hot latent `x` (rows, codebook, height, width).

    Draws come from the seed of the noise and are made on the CPU, so that they are the same on every device.
    """
    extra, schedule = extra_args or {}, schedule or MaskSchedule(len(sigmas) - 1, TEMPERATURE)
    guider, levels = model.inner_model, sigmas.tolist()
    check_model(guider.inner_model)
    check_sigmas(levels)
    check_tokens(x)
    rows, codebook, height, width = x.shape
    draws = Draws(extra.get("seed") or 0, x.device)
    noise_mask, options = extra.get("denoise_mask"), extra.get("model_options", {})
    tokens, share = _start(x, levels[0], noise_mask, draws)
    if noise_mask is not None:
        check_noise_mask(options, tokens == codebook)
    for step in model_trange(len(levels) - 1, disable=disable):
        comfy.model_management.throw_exception_if_processing_interrupted()
        latent = one_hot(tokens, codebook, x.dtype)
        level = x.new_full((rows,), levels[step])
        # Not through the wrapper that mixes in what a noise mask keeps: known tokens stay by themselves.
        predicted = guider(latent, level, model_options=options, seed=extra.get("seed"))
        logits = predicted.float().flatten(2).mT
        check_logits(logits)
        # aMUSEd inpaints by a straight line, and makes whole pictures by the cosine.
        ratio = (
            share * schedule.ratio(levels[step + 1], evenly=noise_mask is not None) if levels[step + 1] > 0 else None
        )
        warmth = schedule.warmth(levels[step], levels[step + 1])
        found, after = _step(tokens.flatten(1), logits, schedule.decoder, ratio, warmth, draws)
        tokens = after.reshape(tokens.shape)
        if callback is not None:
            denoised = one_hot(found.reshape(tokens.shape), codebook, x.dtype)
            told = {"x": latent, "i": step, "sigma": level[0], "sigma_hat": level[0], "denoised": denoised}
            callback(told)
    return one_hot(tokens, codebook, x.dtype)


class Draws:
    """Random numbers of one seed, on the device where they are needed."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._device = device

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self._generator).to(self._device)

    def exponential(self, *shape: int) -> Tensor:
        return torch.empty(shape).exponential_(generator=self._generator).to(self._device)


def _step(
    tokens: Tensor, logits: Tensor, decoder: Decoder, ratio: Tensor | None, warmth: float, draws: Draws
) -> tuple[Tensor, Tensor]:
    """Tokens (rows, tokens) with the masked ones found, and as they are after the step, with `ratio` masked again."""
    rows, length, codebook = logits.shape
    if decoder == "aMUSEd":
        drawn = draw_tokens(logits, draws.exponential(rows * length, codebook).reshape(logits.shape))
    else:
        drawn = draw_tokens_muse(logits, warmth, gumbel(draws.uniform(rows, length, codebook)))
    found = drawn.where(tokens == codebook, tokens)
    if ratio is None:
        return found, found
    remask = remask_amused if decoder == "aMUSEd" else remask_muse
    noise = gumbel(draws.uniform(rows, length))
    return found, remask(tokens, logits, drawn, codebook, ratio, warmth, noise)


def _start(x: Tensor, sigma: float, denoise_mask: Tensor | None, draws: Draws) -> tuple[Tensor, Tensor]:
    """The tokens of a latent, `codebook` where they are to be found, and what the schedule's shares are shares of.

    Masked ones stay masked. A noise mask masks an image in which none is, and adds nothing to one that another sampler
    left half done. Where neither leaves any, as many as `sigma` says are masked at random.
    """
    codebook = x.shape[1]
    tokens = tokens_of(x, codebook)
    masked = tokens == codebook
    begun = masked.flatten(1).any(dim=1)[:, None, None]
    if denoise_mask is not None:
        under = (denoise_mask[:, 0] >= MASKED) | masked
        return tokens.masked_fill(under & ~begun, codebook), _share(under)
    if not bool(begun.any()):
        drawn = draws.uniform(*tokens.shape) < sigma if sigma < 1 else torch.ones_like(masked)
        return tokens.masked_fill(drawn, codebook), torch.tensor(1.0)
    share, length = _share(masked), masked[0].numel()
    if sigma >= 1:
        return tokens, share
    # Another sampler left this latent half done: of what was masked when that one began.
    whole = math.ceil(float(share) * length) >= math.floor(length * sigma)
    return tokens, torch.tensor(1.0) if whole else share / sigma


def _share(masked: Tensor) -> Tensor:
    return (masked.sum() / masked.numel()).cpu()


def only_masked_sampler(executor: Any, noise: Tensor, latent: Tensor, sampler: Any, *rest: Any, **named: Any) -> Tensor:
    """OUTER_SAMPLE wrapper: refuses samplers that would add noise to tokens, before the model is called."""
    function = getattr(sampler, "sampler_function", sampler)
    if function is not sample_masked_tokens:
        found = getattr(function, "__name__", type(function).__name__).removeprefix("sample_")
        raise ValueError(
            f"A masked transformer finds tokens and cannot be sampled by '{found}'. Use Masked Sampler with "
            "SamplerCustomAdvanced, and connect its outputs sampler and sigmas."
        )
    guider = executor.class_obj
    check_sampling(guider.model_patcher.get_model_object("model_sampling"))
    check_conds(guider.conds)
    return executor(noise, latent, sampler, *rest, **named)
