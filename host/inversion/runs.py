"""What all inversions share: runs of ComfyUI's sampler without added noise, and what they start from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_sampling
import comfy.sample
import comfy.samplers
import latent_preview
import torch
from torch import Tensor

from ...attention.engine.weighted import Weighted
from ...attention.references.trajectory import ReferenceTrajectory, ShownText
from ..binding.model import patches_on
from ..conditioning import Text, shown_text

MOST_STEPS = 500


@dataclass(frozen=True, eq=False)
class Inversion:
    """A trajectory, and the noise to sample it back from."""

    trajectory: ReferenceTrajectory
    noise: Tensor
    """(images, channels, height, width), a LATENT for a sampler node that adds no noise."""


@dataclass(frozen=True, eq=False)
class Start:
    """The input of a sampler that adds no noise."""

    latent: Tensor  # (images, channels, height, width)
    sigmas: Tensor  # (steps + 1,), falling


def noise_levels(model: Any, timesteps: Sequence[int]) -> Tensor:
    """The noise levels (sigmas) of training timesteps 0 to 999, float32 on the CPU."""
    return model.get_model_object("model_sampling").sigmas.float().cpu()[list(timesteps)]


def start_latent(model: Any, latent: Tensor, sigma: float) -> Tensor:
    """A latent at level `sigma`, scaled as a UNet input, as LATENT for a sampler node that adds no noise."""
    return model.model.process_latent_out(latent * math.sqrt(1 + sigma**2))


NOISE_ALONE = 1 - 1e-5
"""From this level up a flow's state is noise alone, to the tolerance that ComfyUI has for its highest level."""


def as_latent(model: Any, state: Tensor, sigma: float = 0.0) -> Tensor:
    """A state (images, channels, height, width) as LATENT; for a model of video, as one frame.

    `sigma` is the noise level of a flow's state, which is given in the scale of `handed_on`.
    """
    if model.get_model_object("latent_format").latent_dimensions == 3:
        state = state[:, :, None]
    if sigma:
        state = handed_on(model.get_model_object("model_sampling"), state, sigma)
    return model.model.process_latent_out(state)


def handed_on(sampling: Any, state: Tensor, sigma: float) -> Tensor:
    """A flow's state in the scale in which ComfyUI's samplers hand it to the next; of noise alone, as it is."""
    return state if sigma > NOISE_ALONE else sampling.inverse_noise_scaling(state.new_tensor(sigma), state)


def taken_over(sampling: Any, latent: Tensor, sigma: float) -> Tensor:
    """The state at a noise level of a flow that a LATENT is in that scale; reverses `handed_on`."""
    if sigma > NOISE_ALONE:
        return latent
    return sampling.noise_scaling(latent.new_tensor(sigma), torch.zeros_like(latent), latent)


def falling_levels(trajectory: ReferenceTrajectory) -> Tensor:
    """The noise levels of a trajectory's points, from its noise to the picture."""
    return torch.tensor(trajectory.sigmas).flip(0)


def check_steps(steps: int) -> None:
    """Raises ValueError unless `steps` is from 2 to MOST_STEPS."""
    if not 1 < steps <= MOST_STEPS:
        raise ValueError(f"{steps} steps cannot be inverted; choose a number from 2 to {MOST_STEPS}, such as 50.")


@dataclass(frozen=True, eq=False)
class SamplerCall:
    """What ComfyUI passes to a sampler function besides the latent and the noise levels."""

    model: Any
    extra_args: dict[str, Any]
    callback: Callable[[dict[str, Any]], None] | None

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        """The clean latent that the guider predicts for `x`, in ComfyUI's scale, at noise level `sigma`."""
        return self.model(x, x.new_full((len(x),), sigma), **self.extra_args)

    def report(self, index: int, sigma: float, x: Tensor, denoised: Tensor) -> None:
        """Progress and preview of the step with this index, which started at `sigma` and led to `x`."""
        if self.callback is not None:
            self.callback({"x": x, "i": index, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})


class NoiselessSampler(comfy.samplers.KSAMPLER):
    """A SAMPLER that drops the noise it is handed, so that a sampler node's add_noise may be on or off."""

    adds_noise = False
    """Read by the plan of a run; a SAMPLER without it takes the noise."""

    def sample(
        self, model_wrap: Any, sigmas: Tensor, extra_args: Any, callback: Any, noise: Tensor, *rest: Any, **named: Any
    ) -> Tensor:
        return super().sample(model_wrap, sigmas, extra_args, callback, torch.zeros_like(noise), *rest, **named)


def noiseless_euler() -> NoiselessSampler:
    """Euler's steps, which are DDIM's, from the latent as it is."""
    return NoiselessSampler(comfy.samplers.sampler_object("euler").sampler_function)


Walk = Callable[[SamplerCall, Tensor, list[float]], Tensor]
"""A sampler as (call, x, noise levels) -> x at the last level."""


def walk_sampler(walk: Walk) -> comfy.samplers.KSAMPLER:
    """The SAMPLER that takes the steps of `walk`."""

    def sample(
        model: Any, x: Tensor, sigmas: Tensor, extra_args: dict[str, Any], callback: Any, disable: Any
    ) -> Tensor:
        return walk(SamplerCall(model, extra_args, callback), x, sigmas.tolist())

    return comfy.samplers.KSAMPLER(sample)


def sample_with_text(
    model: Any,
    latent: Tensor,
    sigmas: Tensor,
    text: Text,
    walk: Walk,
    sampler_of: Callable[[Walk], Any] = walk_sampler,
) -> tuple[Tensor, ShownText]:
    """Like `sample_without_noise`, with the steps of `walk`; also returns the `shown_text` of the run."""
    shown: list[ShownText] = []

    def recorded(call: SamplerCall, x: Tensor, levels: list[float]) -> Tensor:
        shown.append(shown_text(call.model.inner_model, len(x)))
        return walk(call, x, levels)

    end = sample_without_noise(model, latent, sigmas, text, sampler_of(recorded))
    return end, shown[-1]


def sample_without_noise(model: Any, latent: Tensor, sigmas: Tensor, text: Text, sampler: Any) -> Tensor:
    """The LATENT to which `sampler` leads from `latent`, with ComfyUI's guider, progress bar and preview."""
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(text.positive, text.negative)
    guider.set_cfg(text.guidance)
    latent = comfy.sample.fix_empty_latent_channels(model, latent)
    callback = latent_preview.prepare_callback(model, len(sigmas) - 1)
    return guider.sample(torch.zeros_like(latent), latent, sampler, sigmas, callback=callback, seed=0)


def check_unet_channels(model: Any) -> None:
    """Refuses inpainting models with a ValueError, before minutes of inversion that nothing could use."""
    taken, held = model.model.diffusion_model.in_channels, model.model.latent_format.latent_channels
    if taken != held:
        raise ValueError(
            f"The model takes {taken} channels where a picture's latent has {held}: it is an inpainting model, which "
            "cannot invert a picture. Load an ordinary checkpoint."
        )


def check_plain(model: Any) -> None:
    """Refuses a MODEL with a method of ours that acts on it: its states are not those that StyleID looks at."""
    for patch in patches_on(model):
        if not isinstance(patch, Weighted) or (patch.strength and any(patch.scope.blocks.values())):
            name = repr(patch).partition(",")[0].partition(" (")[0]
            raise ValueError(
                f"The model to invert with carries {name} already, which would change what the picture is inverted to. "
                "Connect the model from before that node."
            )
