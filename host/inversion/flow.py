"""Inversion of pictures on rectified-flow models, by the midpoint rule on ComfyUI's guider, and the way back.

ComfyUI's samplers begin from (1 - sigma) times the latent, and divide their result by 1 - sigma. At the noisy end,
where sigma is 1, the first leaves nothing of an inverted picture and the second is no number. `StateSampler` takes and
gives the state as it is there; below, it does as ComfyUI's own, so that one can go on where the other stopped.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import comfy.samplers
import torch
from torch import Tensor

from ...attention.functional.flow import flow_velocity, midpoint_step
from ...attention.functional.inversion import MIDPOINT
from ...attention.references.trajectory import ReferenceTrajectory
from ..binding.conditions import nothing_to_fill
from ..binding.noise_schedule import is_flow
from ..conditioning import Text
from ..display import tell
from ..identity import name_of, stamp_of
from .flow_advice import advice_on_styleid
from .runs import (
    Inversion,
    SamplerCall,
    Walk,
    as_latent,
    check_steps,
    falling_levels,
    handed_on,
    sample_with_text,
    sample_without_noise,
    taken_over,
)

SCHEDULER = "simple"


def invert_flow(model: Any, pictures: Tensor, steps: int, text: Text) -> Inversion:
    """Inverts clean latents (images, channels, height, width), as from VAE Encode and `picture_latents`, as one batch.

    The model is called twice a step. Raises ValueError for latents of another model, a number of steps or a text that
    cannot be used.
    """
    stamp = stamp_of(model)
    check_steps(steps)
    _check_channels(model, stamp.family, pictures)
    _check_reads_no_more(model, pictures)
    _check_guidance(text)
    sigmas = flow_levels(model, steps)
    inversion = _Inversion()
    noise, shown = sample_with_text(model, pictures, sigmas, text, inversion, StateSampler)
    trajectory = ReferenceTrajectory(
        latents=torch.stack(inversion.states).float().cpu(),
        sigmas=tuple(sigmas.tolist()),
        steps=steps,
        convention=MIDPOINT,
        stamp=stamp,
        context=shown.context,
        vector=shown.vector,
        embedded_guidance=shown.guidance,
    )
    return Inversion(trajectory, noise)


def sample_flow_back(model: Any, trajectory: ReferenceTrajectory, text: Text) -> Tensor:
    """The pictures sampled by the midpoint rule from the noisy end, as latents for VAE Decode."""
    start = as_latent(model, trajectory.latents[-1], trajectory.sigmas[-1])
    return sample_without_noise(model, start, falling_levels(trajectory), text, flow_sampler())


def flow_levels(model: Any, steps: int) -> Tensor:
    """The rising noise levels from 0, as ComfyUI's scheduler *simple* gives them to the MODEL with its shift."""
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), SCHEDULER, steps).flip(0)


def flow_sampler() -> StateSampler:
    """A SAMPLER by the midpoint rule, without added noise."""
    return StateSampler(_sampled)


class StateSampler(comfy.samplers.Sampler):
    """A SAMPLER that adds no noise, and begins and ends at noise level 1 too: the LATENT there is the state itself.

    Below 1 the LATENT is what ComfyUI's samplers hand to the next; at 0 it is the picture.
    """

    adds_noise = False
    """Read by the plan of a run, as `takes_state` is; a SAMPLER without it takes the noise."""
    takes_state = True

    def __init__(self, walk: Walk) -> None:
        self._walk = walk

    def between(self, levels: Sequence[float]) -> Sequence[float]:
        """Where the midpoint rule calls the model between the noise levels of a run. Read by the plan."""
        return [(sigma + target) / 2 for sigma, target in itertools.pairwise(levels)]

    def sample(
        self,
        model_wrap: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        noise: Tensor,
        latent_image: Tensor | None = None,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        latent = noise if latent_image is None else latent_image
        _check_run(model_wrap.model_patcher, latent, denoise_mask)
        levels, sampling = sigmas.tolist(), model_wrap.inner_model.model_sampling
        steps, begin = len(levels) - 1, taken_over(sampling, latent, levels[0])
        if told := advice_on_styleid(model_wrap, begin, levels[0]):
            tell(told)

        def report(step: dict[str, Any]) -> None:
            if callback is not None:
                callback(step["i"], step["denoised"], step["x"], steps)

        model = comfy.samplers.KSamplerX0Inpaint(model_wrap, sigmas)
        call = SamplerCall(model, {**extra_args, "denoise_mask": None}, report)
        end = self._walk(call, begin, levels)
        return handed_on(sampling, end, levels[-1])


class _Inversion:
    """Steps up a rising ladder that keep the state of every point, (images, channels, height, width)."""

    def __init__(self) -> None:
        self.states: list[Tensor] = []

    def __call__(self, call: SamplerCall, x: Tensor, levels: list[float]) -> Tensor:
        self._keep(x)
        for reached in _states(call, x, levels):
            self._keep(reached)
            x = reached
        return x

    def _keep(self, x: Tensor) -> None:
        self.states.append(x[:, :, 0] if x.ndim == 5 else x)


def _sampled(call: SamplerCall, x: Tensor, levels: list[float]) -> Tensor:
    for reached in _states(call, x, levels):
        x = reached
    return x


def _states(call: SamplerCall, x: Tensor, levels: list[float]) -> Iterator[Tensor]:
    """The states at all levels but the first, in either direction."""
    velocity = _Velocity(call)
    for index, (sigma, target) in enumerate(itertools.pairwise(levels)):
        x = midpoint_step(velocity, x, sigma, target)
        call.report(index, sigma, x, velocity.denoised)
        yield x


class _Velocity:
    """The model's velocity, by what the guider predicts; `denoised` is its last prediction."""

    def __init__(self, call: SamplerCall) -> None:
        self.denoised = torch.empty(0)
        self._call = call
        self._lowest = float(call.model.inner_model.inner_model.model_sampling.sigma_min)

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        # At 0 a prediction of the clean latent is the latent itself, whatever the velocity. The first step up asks for
        # the velocity of the clean latent at the lowest level of the model's schedule, 0.0003 for Flux.
        level = max(sigma, self._lowest)
        self.denoised = self._call.denoise(x, level)
        return flow_velocity(x, self.denoised, level)


def _check_channels(model: Any, family: str, pictures: Tensor) -> None:
    channels = model.get_model_object("latent_format").latent_channels
    if pictures.shape[1] != channels:
        raise ValueError(
            f"The latent has {pictures.shape[1]} channels, but those of this model ({family}) have {channels}. Encode "
            "the picture with the model's own VAE."
        )


def _check_reads_no_more(model: Any, pictures: Tensor) -> None:
    """Refuses models that fill, edit or animate, before minutes of inversion: what they read beside a picture's
    latent is not known.
    """
    pictures = pictures[:1]
    like = pictures[:, :, None] if model.get_model_object("latent_format").latent_dimensions == 3 else pictures
    further = nothing_to_fill(model.model, like)
    if further is not None:
        channels = pictures.shape[1]
        raise ValueError(
            f"The model takes {channels + further.shape[1]} channels where a picture's latent has {channels}: it "
            "fills, edits or animates a picture, and cannot invert one. Load an ordinary checkpoint."
        )


def _check_guidance(text: Text) -> None:
    """Refuses a CFG, whose negative side on the way back nobody could make the same."""
    if text.guidance != 1:
        raise ValueError(
            f"The guidance is {text.guidance:g}, but a flow model is inverted with one text alone, so that the way "
            "back can have the same. Set guidance to 1, and sample at CFG 1."
        )


def _check_run(model: Any, latent: Tensor, mask: Tensor | None) -> None:
    """Raises ValueError for a run that this sampler cannot serve."""
    if not is_flow(model):
        raise ValueError(
            f"This sampler is for flow models, and this one ({name_of(model)}) is none. Connect the sampler of a node "
            "with this model on it."
        )
    if mask is not None:
        raise ValueError(
            "The latent carries a noise mask, which would mix the noisy start into the result. Remove the mask (Set "
            "Latent Noise Mask), and composite the new picture over the original instead."
        )
    if not latent.any():
        raise ValueError(
            "The latent is empty (all zeros), but this sampler adds no noise: it starts from an inverted picture. "
            "Connect the noise of Invert Image, or the latent of StyleID."
        )
