"""Edit-friendly inversion on ComfyUI's sampler, and the SAMPLER that replays its noises."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.samplers
import torch
from torch import Tensor

from ...attention.functional.edit_friendly import (
    Denoise,
    ReverseStep,
    ddpm_inversion,
    ddpm_replay,
    noised_states,
    state_scale,
    with_noiseless_last_step,
)
from ...attention.functional.inversion import inversion_timesteps
from ...attention.references.trajectory import ReferenceTrajectory
from ..binding.model import map_unet
from ..conditioning import Text
from ..identity import FLOW, INVERT_AGAIN, check_family, stamp_of
from .runs import (
    Inversion,
    SamplerCall,
    Start,
    check_plain,
    check_steps,
    check_unet_channels,
    noise_levels,
    sample_with_text,
    sample_without_noise,
    start_latent,
)

SEEDS = 2**64
ROUNDING = 1e-6
"""The error of scaling a latent to a LATENT and back, relative to its largest value."""


def draw_noises(pictures: Tensor, steps: int, seed: int, indices: Sequence[int] | None = None) -> Tensor:
    """Independent noises (steps, images, channels, height, width) for the levels above the picture, rising.

    Each image has its own generator, seeded with `seed` plus its index in the batch, so that its noises do not depend
    on the other images. `indices` are those of a larger batch, as in a LATENT's `batch_index`.
    """

    def drawn(index: int) -> Tensor:
        generator = torch.Generator().manual_seed((seed + index) % SEEDS)
        return torch.randn(steps, *pictures.shape[1:], generator=generator)

    return torch.stack([drawn(index) for index in indices or range(len(pictures))], dim=1)


def invert_edit_friendly(model: Any, pictures: Tensor, steps: int, text: Text, noises: Tensor) -> Inversion:
    """Inverts clean latents (images, channels, height, width), as from VAE Encode and `picture_latents`, as one batch.

    `noises`, from `draw_noises`, make the noised states. The model is called once per step. Raises ValueError for a
    model, a number of steps or a text that cannot be used.
    """
    stamp = stamp_of(model)
    if stamp.prediction == FLOW:
        raise ValueError(
            f"This model ({stamp.family}) is a flow model, whose steps have no noise to hide a picture in. Use "
            "Invert Image (DDIM, flow)."
        )
    check_plain(model)
    check_steps(steps)
    check_unet_channels(model)
    _check_prompts(text, len(pictures))
    sigmas = noise_levels(model, inversion_timesteps(steps, "edit-friendly"))
    inversion = _Inversion(noises)
    _, shown = sample_with_text(model, pictures, sigmas.flip(0), text, inversion)
    trajectory = ReferenceTrajectory(
        latents=torch.stack(inversion.states[::-1]),
        sigmas=tuple(sigmas.tolist()),
        steps=steps,
        convention="edit-friendly",
        stamp=stamp,
        context=shown.context,
        vector=shown.vector,
        guidance=text.guidance,
        noises=with_noiseless_last_step(torch.stack(inversion.noises[::-1])),
    )
    return Inversion(trajectory, start_after(model, trajectory).latent)


def start_after(model: Any, trajectory: ReferenceTrajectory, skip: int = 0) -> Start:
    """The start of a replay that leaves out the first `skip` steps, from 0 to the trajectory's steps less 1."""
    top = trajectory.steps - skip
    sigmas = torch.tensor(trajectory.sigmas[: top + 1]).flip(0)
    return Start(start_latent(model, trajectory.latents[top], trajectory.sigmas[top]), sigmas)


def replay_sampler(trajectory: ReferenceTrajectory) -> comfy.samplers.KSAMPLER:
    """A SAMPLER that takes the noises of the trajectory. With the text of the inversion it gives its pictures."""
    return comfy.samplers.KSAMPLER(sample_replay, extra_options={"trajectory": trajectory})


def replay(model: Any, trajectory: ReferenceTrajectory, text: Text, skip: int = 0) -> Tensor:
    """The pictures sampled with the noises of the trajectory, as latents for VAE Decode."""
    start = start_after(model, trajectory, skip)
    return sample_without_noise(model, start.latent, start.sigmas, text, replay_sampler(trajectory))


def sample_replay(
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any],
    callback: Any,
    disable: Any,
    trajectory: ReferenceTrajectory,
) -> Tensor:
    """A sampler function of ComfyUI: DDPM with the noises of the trajectory. Its last state is the picture itself.

    Raises ValueError for a run that these noises do not belong to.
    """
    if len(sigmas) < 2:
        return x
    noises = _noises_for(model, x, extra_args, trajectory)
    top, bottom = _span(trajectory, sigmas.tolist())
    noises = noises[bottom:top].repeat(1, len(x) // trajectory.images, 1, 1, 1).to(x)
    ladder = trajectory.sigmas[bottom : top + 1]
    x = _recorded(trajectory.latents[top].to(x), x / state_scale(ladder[-1]))
    call = SamplerCall(model, extra_args, callback)
    for index, step in enumerate(ddpm_replay(x, noises, ladder, _denoiser(call))):
        x = step.state
        _report(call, index, step)
    return x * state_scale(ladder[0]) if bottom else x


class _Inversion:
    """Steps down from noised states of the picture that keep each state, and the noise of each step. On the CPU."""

    def __init__(self, drawn: Tensor) -> None:
        self.states: list[Tensor] = []
        self.noises: list[Tensor] = []
        self._drawn = drawn

    def __call__(self, call: SamplerCall, x: Tensor, levels: list[float]) -> Tensor:
        ladder = levels[::-1]
        states = noised_states(x, self._drawn.to(x), ladder)
        self.states.append(states[-1].cpu())
        for index, step in enumerate(ddpm_inversion(states, ladder, _denoiser(call))):
            self.states.append(step.state.cpu())
            self.noises.append(step.noise.cpu())
            _report(call, index, step)
        return x


def _check_prompts(text: Text, pictures: int) -> None:
    for prompts, _ in text.positive:
        if len(prompts) not in (1, pictures):
            raise ValueError(
                f"The text holds {len(prompts)} prompts, but there are {pictures} pictures to invert. Give one prompt "
                "for all, or one for each picture."
            )


def _report(call: SamplerCall, index: int, step: ReverseStep) -> None:
    call.report(index, step.sigma, step.state * state_scale(step.target), step.denoised)


def _denoiser(call: SamplerCall) -> Denoise:
    """The model for states scaled as UNet inputs."""
    return lambda state, sigma: call.denoise(state * state_scale(sigma), sigma)


def _recorded(latent: Tensor, x: Tensor) -> Tensor:
    """The trajectory's own latent in place of `x`, if `x` is that latent rounded by the scales of LATENT and sampler.

    A replay with the text of the inversion is bitwise equal only from the exact latent; rounding grows with every step.
    """
    own = latent.repeat(len(x) // len(latent), 1, 1, 1)
    return own if (own - x).abs().max() <= ROUNDING * own.abs().max() else x


def _noises_for(model: Any, x: Tensor, extra_args: dict[str, Any], trajectory: ReferenceTrajectory) -> Tensor:
    """The noises of the trajectory. Raises ValueError for a run that they do not belong to."""
    if trajectory.noises is None:
        raise ValueError(
            f"This trajectory ({trajectory.convention}) holds no noises to replay. Invert the picture with Invert "
            "Image (edit-friendly)."
        )
    family = map_unet(model.inner_model.model_patcher).name
    check_family(trajectory.stamp, family, "The trajectory was made", INVERT_AGAIN)
    if model.noise.any():
        raise ValueError(
            "The sampler node adds fresh noise, but this sampler brings the picture's own. Turn add_noise off, or "
            "connect Disable Noise."
        )
    if extra_args.get("denoise_mask") is not None:
        raise ValueError(
            "The latent carries a noise mask, which would mix the noisy start into the result. Remove the mask (Set "
            "Latent Noise Mask), and composite the edited picture over the original instead."
        )
    if tuple(x.shape[-2:]) != trajectory.size or len(x) % trajectory.images:
        height, width = trajectory.size
        raise ValueError(
            f"The latent holds {len(x)} images of {x.shape[-1]}x{x.shape[-2]}, but the noises are those of "
            f"{trajectory.images} of {width}x{height}. Connect the LATENT of Invert Image (edit-friendly) to the "
            "sampler."
        )
    return trajectory.noises


def _span(trajectory: ReferenceTrajectory, falling: Sequence[float]) -> tuple[int, int]:
    """The indices of the first and last point of a run. Raises ValueError if it leaves out points between them."""
    indices = [trajectory.index(sigma) for sigma in falling]
    if indices != list(range(indices[0], indices[-1] - 1, -1)):
        raise ValueError(
            f"The sampler leaves out points of the trajectory's {trajectory.steps} steps, so their noises cannot be "
            "replayed. Connect the SIGMAS of Invert Image (edit-friendly)."
        )
    return indices[0], indices[-1]
