"""Inverting pictures on the real sampler: the noise that DDIM would have made them from, and every step to it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import comfy.model_sampling
import comfy.sample
import comfy.samplers
import latent_preview
import torch
from torch import Tensor

from ..functional.inversion import (
    TRAINING_STEPS,
    DDIMConvention,
    inversion_timesteps,
    sampling_timesteps,
    seen_at_target,
    step_by_own_level,
    step_by_target_level,
)
from ..reference import ModelStamp, ReferenceTrajectory
from .patching import map_model

Conditioning = list[list[Any]]
MOST_STEPS = 500


@dataclass(frozen=True)
class Text:
    """The conditionings of an inversion; at guidance 1 the negative is not looked at."""

    positive: Conditioning
    negative: Conditioning
    guidance: float = 1.0


@dataclass(frozen=True, eq=False)
class Inversion:
    """A trajectory with what a sampler needs to come back from its end."""

    trajectory: ReferenceTrajectory
    noise: Tensor
    """The noisy end as a sampler node takes it, without adding noise: (images, channels, height, width)."""


@dataclass(frozen=True, eq=False)
class Start:
    """What the sampler is given: latents that need no added noise, and the ladder."""

    latent: Tensor
    sigmas: Tensor


def invert(model: Any, pictures: Tensor, steps: int, convention: DDIMConvention, text: Text) -> Inversion:
    """Inverts clean latents (images, channels, height, width), as VAE Encode gives them, all in one batch.

    The model is called once a step. Raises ValueError for a model or a latent that cannot be inverted.
    """
    stamp = stamp_of(model)
    require_latents(pictures)
    require_steps(steps)
    sigmas = noise_levels(model, inversion_timesteps(steps, convention))
    recorder = _Recorder(convention, stamp.prediction == "v")
    noise = sample_without_noise(model, pictures, sigmas, text, comfy.samplers.KSAMPLER(recorder))
    latents = torch.stack(recorder.latents).float().cpu()
    context, vector = recorder.text
    trajectory = ReferenceTrajectory(
        latents, tuple(sigmas.tolist()), steps, convention, stamp, context, vector, text.guidance
    )
    return Inversion(trajectory, noise)


def sample_back(model: Any, trajectory: ReferenceTrajectory, text: Text) -> Tensor:
    """The pictures sampled from the noisy end over the same points, as clean latents for VAE Decode."""
    falling = torch.tensor(trajectory.sigmas).flip(0)
    start = start_latent(model, trajectory.latents[-1], falling[0].item())
    back = sample_without_noise(model, start, falling, text, comfy.samplers.KSAMPLER(_euler))
    return back / math.sqrt(1 + trajectory.sigmas[0] ** 2)


def reconstruction_error(model: Any, trajectory: ReferenceTrajectory, back: Tensor) -> float:
    """Relative L2 distance between the clean latents and those sampled back."""
    clean = model.model.process_latent_out(trajectory.latents[0])
    return ((back.cpu() - clean).norm() / clean.norm()).item()


def noise_levels(model: Any, timesteps: Sequence[int]) -> Tensor:
    """The noise levels of the training's timesteps, float32 on the CPU."""
    return model.get_model_object("model_sampling").sigmas.float().cpu()[list(timesteps)]


def sampling_sigmas(model: Any, trajectory: ReferenceTrajectory, skip: int = 0) -> Tensor:
    """The falling ladder to sample over, ending on the level of timestep 0; `skip` leaves out its first points."""
    falling = sampling_timesteps(trajectory.steps)[::-1][skip:]
    return noise_levels(model, [*falling, 0])


def start_latent(model: Any, latent: Tensor, sigma: float) -> Tensor:
    """A latent as the UNet is fed it, made one for a sampler node that starts at `sigma` and adds no noise."""
    return model.model.process_latent_out(latent * math.sqrt(1 + sigma**2))


def stamp_of(model: Any) -> ModelStamp:
    """What tells this model from others. Raises ValueError for families and predictions that are not known."""
    known = map_model(model)
    model_sampling = model.get_model_object("model_sampling")
    prediction = _prediction(model_sampling)
    schedule = model_sampling.sigmas
    if len(schedule) != TRAINING_STEPS:
        raise ValueError(
            f"This model's noise schedule has {len(schedule)} steps where {TRAINING_STEPS} are expected. Remove "
            "ModelSampling nodes before Invert Image."
        )
    return ModelStamp(known.name, prediction, digest_of(model))


def require_latents(latents: Tensor) -> None:
    """Refuses latents that no inversion can start from, with a ValueError."""
    if latents.ndim != 4 or 0 in latents.shape:
        raise ValueError(
            f"The latent has shape {tuple(latents.shape)}; expected (images, channels, height, width), none of them 0. "
            "Connect a VAE Encode node."
        )
    if not torch.isfinite(latents).all():
        raise ValueError(
            "The latent holds values that are not numbers (NaN or infinite). The VAE may have overflowed in fp16; "
            "encode with --fp32-vae."
        )
    if not latents.any():
        raise ValueError(
            "The latent is empty (all zeros): there is no picture to invert. Connect VAE Encode, not Empty Latent."
        )


def require_steps(steps: int) -> None:
    """Refuses a number of steps that no ladder can be made of, with a ValueError."""
    if not 1 < steps <= MOST_STEPS:
        raise ValueError(f"{steps} steps cannot be inverted; choose a number from 2 to {MOST_STEPS}, such as 50.")


def require_family(trajectory: ReferenceTrajectory, family: str, name: str) -> None:
    """Refuses a trajectory of another family of models, with a ValueError."""
    if trajectory.stamp.family != family:
        raise ValueError(
            f"The {name} was made with an {trajectory.stamp.family} model, but this one is {family}. Invert the "
            "picture with the model you sample with."
        )


def _prediction(model_sampling: Any) -> str:
    """What the network predicts; a ModelSampling node may have changed it."""
    kinds = {comfy.model_sampling.V_PREDICTION: "v", comfy.model_sampling.EPS: "eps"}  # the first is one of the second
    others = (comfy.model_sampling.X0, comfy.model_sampling.EDM)
    for kind, name in kinds.items():
        if isinstance(model_sampling, kind) and not isinstance(model_sampling, others):
            return name
    found = "/".join(base.__name__ for base in type(model_sampling).__bases__)
    raise ValueError(
        f"This model samples by {found}, which DDIM cannot invert. Load an SD 1.5 or SDXL checkpoint "
        "that predicts noise or v, without LCM or EDM sampling nodes."
    )


class _Recorder:
    """A sampler function that climbs a rising ladder and keeps the latent at every point."""

    def __init__(self, convention: DDIMConvention, predicts_v: bool) -> None:
        self.latents: list[Tensor] = []
        self._convention, self._predicts_v = convention, predicts_v
        self._text: tuple[Tensor, Tensor | None] | None = None

    @property
    def text(self) -> tuple[Tensor, Tensor | None]:
        assert self._text is not None
        return self._text

    def __call__(
        self, model: Any, x: Tensor, sigmas: Tensor, extra_args: dict[str, Any], callback: Any, disable: Any
    ) -> Tensor:
        self._text = shown_text(model.inner_model, len(x))
        levels: list[float] = sigmas.tolist()
        x = x * math.sqrt(1 + levels[0] ** 2)  # the picture counts as a latent of the first level
        self._keep(x, levels[0])
        for place, (sigma, target) in enumerate(zip(levels[:-1], levels[1:], strict=True)):
            denoise = partial(denoise_at, model, extra_args)
            if self._convention == "styleid":
                denoised = denoise(x, sigma)
                x = step_by_own_level(x, denoised, sigma, target)
            else:
                seen = seen_at_target(x, sigma, target)
                denoised = denoise(seen, target)
                x = step_by_target_level(x, seen, denoised, sigma, target, self._predicts_v)
            self._keep(x, target)
            if callback is not None:
                callback({"x": x, "i": place, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
        return x

    def _keep(self, x: Tensor, sigma: float) -> None:
        self.latents.append(x / math.sqrt(1 + sigma**2))


def _euler(model: Any, x: Tensor, sigmas: Tensor, extra_args: dict[str, Any], callback: Any, disable: Any) -> Tensor:
    """DDIM downwards, which may end above zero."""
    levels: list[float] = sigmas.tolist()
    for place, (sigma, target) in enumerate(zip(levels[:-1], levels[1:], strict=True)):
        denoised = denoise_at(model, extra_args, x, sigma)
        x = step_by_own_level(x, denoised, sigma, target)
        if callback is not None:
            callback({"x": x, "i": place, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
    return x


def denoise_at(model: Callable[..., Tensor], extra_args: dict[str, Any], x: Tensor, sigma: float) -> Tensor:
    """What the guider, called from a sampler function, takes `x` on the level `sigma` for."""
    return model(x, x.new_full((len(x),), sigma), **extra_args)


def shown_text(guider: Any, images: int) -> tuple[Tensor, Tensor | None]:
    """The text, and SDXL's vector, that the positive conditioning shows the UNet: one row for all images, or one each.

    Fewer prompts than images go round, as at the host: those of n contents are those of their n styles too.
    """
    given = guider.conds["positive"]
    if len(given) != 1 or "area" in given[0]:
        raise ValueError(
            "The conditioning for an inversion must be one prompt for the whole picture. Remove Conditioning "
            "(Combine) and areas before Invert Image."
        )
    conds = given[0]["model_conds"]

    def rows(name: str) -> Tensor:
        cond = conds[name] if len(conds[name].cond) == 1 else conds[name].process_cond(images)
        return cond.cond.float().cpu()

    return rows("c_crossattn"), rows("y") if "y" in conds else None


def sample_without_noise(model: Any, latent: Tensor, sigmas: Tensor, text: Text, sampler: Any) -> Tensor:
    """A run of `sampler` from `latent` without added noise, through ComfyUI's guider, progress and preview."""
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(text.positive, text.negative)
    guider.set_cfg(text.guidance)
    latent = comfy.sample.fix_empty_latent_channels(model, latent)
    callback = latent_preview.prepare_callback(model, len(sigmas) - 1)
    return guider.sample(torch.zeros_like(latent), latent, sampler, sigmas, callback=callback, seed=0)


def digest_of(model: Any) -> str:
    """Noise schedule, shapes of all weights and samples of some, before any LoRA."""
    schedule = model.get_model_object("model_sampling").sigmas
    digest = hashlib.sha256(schedule.float().cpu().numpy().tobytes())
    weights = model.model.diffusion_model.state_dict()
    digest.update(repr([(name, tuple(weight.shape)) for name, weight in sorted(weights.items())]).encode())
    backup = model.backup
    for name in sorted(weights)[:: max(1, len(weights) // 16)]:
        kept = backup.get(f"diffusion_model.{name}")
        weight = weights[name] if kept is None else kept.weight
        digest.update(weight.flatten()[:64].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
