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
from .sampling import MaskedSampling

Decoder = Literal["aMUSEd", "MUSE"]
DECODERS: tuple[Decoder, ...] = get_args(Decoder)
GUARD = "semblance_masked"
"""The name of the wrapper that keeps other samplers away."""
NEAR = 1e-5
"""How near to a share of the schedule a noise level is taken for it."""
MASKED = 0.5
"""From which value on a noise mask masks a token."""


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
    extra, schedule = extra_args or {}, schedule or MaskSchedule(len(sigmas) - 1, (2.0, 0.0))
    guider, levels = model.inner_model, sigmas.tolist()
    _check_sigmas(levels)
    rows, codebook, height, width = x.shape
    draws = Draws(extra.get("seed") or 0, x.device)
    inpaints = extra.get("denoise_mask") is not None
    tokens, share = _start(x, levels[0], extra.get("denoise_mask"), draws)
    for step in model_trange(len(levels) - 1, disable=disable):
        comfy.model_management.throw_exception_if_processing_interrupted()
        latent = one_hot(tokens, codebook, x.dtype)
        level = x.new_full((rows,), levels[step])
        # Not through the wrapper that mixes in what a noise mask keeps: known tokens stay by themselves.
        predicted = guider(latent, level, model_options=extra.get("model_options", {}), seed=extra.get("seed"))
        logits = predicted.float().flatten(2).mT
        # aMUSEd inpaints by a straight line, and makes whole pictures by the cosine.
        ratio = share * schedule.ratio(levels[step + 1], evenly=inpaints) if levels[step + 1] > 0 else None
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
    return found, remask(tokens, logits, drawn, codebook, ratio.to(tokens.device), warmth, noise)


def _start(x: Tensor, sigma: float, denoise_mask: Tensor | None, draws: Draws) -> tuple[Tensor, Tensor]:
    """The tokens of a latent, `codebook` where they are to be found, and what the schedule's shares are shares of.

    Masked ones stay masked. A noise mask masks more. Where neither leaves any, as many as `sigma` says are masked at
    random.
    """
    _check_tokens(x)
    codebook = x.shape[1]
    tokens = tokens_of(x, codebook)
    known = not bool((tokens == codebook).any())
    if denoise_mask is not None:
        tokens = tokens.masked_fill(denoise_mask[:, 0] >= MASKED, codebook)
    elif known:
        drawn = draws.uniform(*tokens.shape) < sigma if sigma < 1 else torch.ones_like(tokens, dtype=torch.bool)
        return tokens.masked_fill(drawn, codebook), torch.tensor(1.0)
    masked = tokens == codebook
    share, length = (masked.sum() / masked.numel()).cpu(), masked[0].numel()
    if denoise_mask is not None or sigma >= 1:
        return tokens, share
    # Another sampler left this latent half done: of what was masked when that one began.
    whole = math.ceil(float(share) * length) >= math.floor(length * sigma)
    return tokens, torch.tensor(1.0) if whole else share / sigma


def _check_sigmas(levels: list[float]) -> None:
    falling = all(before >= after for before, after in zip(levels, levels[1:], strict=False))
    if not falling or levels[0] > 1 + NEAR or levels[-1] < 0:
        raise ValueError(
            f"Masked Sampler was given sigmas from {levels[0]:.4g} to {levels[-1]:.4g}, but its own are shares of "
            "masked tokens that fall from 1 to 0. Connect its output sigmas to the input sigmas of the sampler node."
        )


def _check_tokens(x: Tensor) -> None:
    if not bool(((x == 0) | (x == 1)).all() and (x.sum(dim=1) <= 1).all()):
        raise ValueError(
            "This latent is not made of tokens. Make it with VAE Encode and the VAE of Load Masked Transformer, or use "
            "an Empty Latent Image; and do not blend, add or scale latents of tokens."
        )


def only_masked_sampler(executor: Any, noise: Tensor, latent: Tensor, sampler: Any, *rest: Any, **named: Any) -> Tensor:
    """OUTER_SAMPLE wrapper: refuses samplers that would add noise to tokens, before the model is called."""
    function = getattr(sampler, "sampler_function", sampler)
    if function is not sample_masked_tokens:
        found = getattr(function, "__name__", type(function).__name__).removeprefix("sample_")
        raise ValueError(
            f"A masked transformer finds tokens and cannot be sampled by '{found}'. Use Masked Sampler with "
            "SamplerCustomAdvanced, and connect its outputs sampler and sigmas."
        )
    sampling = executor.class_obj.model_patcher.get_model_object("model_sampling")
    if not isinstance(sampling, MaskedSampling):
        raise ValueError(
            f"Another node gave this masked transformer the sampling of other models ({type(sampling).__name__}). "
            "Bypass the ModelSampling node."
        )
    return executor(noise, latent, sampler, *rest, **named)
