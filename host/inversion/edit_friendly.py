"""Edit-friendly inversion on the real sampler, and the sampler that replays its noises."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import comfy.samplers
import torch
from torch import Tensor

from ...attention.functional.edit_friendly import (
    ReverseStep,
    ddpm_inversion,
    ddpm_replay,
    noised_states,
    state_scale,
    with_noiseless_last_step,
)
from ...attention.functional.inversion import inversion_timesteps
from ...attention.references.trajectory import ReferenceTrajectory
from ..binding.model import map_model
from ..conditioning import Text, shown_text
from ..identity import INVERT_AGAIN, check_family, stamp_of
from .runs import (
    Inversion,
    Start,
    check_latents,
    check_steps,
    denoise_at,
    noise_levels,
    sample_without_noise,
    start_latent,
)

SEEDS = 2**64
ROUNDING = 1e-6
"""What scaling a latent back and forth changes in it, of its greatest value."""


def draw_noises(pictures: Tensor, steps: int, seed: int, numbers: Sequence[int] | None = None) -> Tensor:
    """Independent noises (steps, images, channels, height, width) for the levels above the picture, rising.

    Each image draws from a generator of its own, seeded with `seed` plus its number in the batch, so that it gets the
    same noises whatever stands beside it.
    """

    def drawn(number: int) -> Tensor:
        generator = torch.Generator().manual_seed((seed + number) % SEEDS)
        return torch.randn(steps, *pictures.shape[1:], generator=generator)

    return torch.stack([drawn(number) for number in numbers or range(len(pictures))], dim=1)


def invert_edit_friendly(model: Any, pictures: Tensor, steps: int, text: Text, noises: Tensor) -> Inversion:
    """Inverts clean latents (images, channels, height, width), as VAE Encode gives them, all in one batch.

    `noises` (steps, images, channels, height, width) are what the levels are noised with, rising. The model is called
    once a step. Raises ValueError for a model or a latent that cannot be inverted.
    """
    stamp = stamp_of(model)
    check_latents(pictures)
    check_steps(steps)
    _check_prompts(text, len(pictures))
    sigmas = noise_levels(model, inversion_timesteps(steps, "edit-friendly"))
    explainer = _Explainer(noises)
    sample_without_noise(model, pictures, sigmas.flip(0), text, comfy.samplers.KSAMPLER(explainer))
    context, vector = explainer.text
    trajectory = ReferenceTrajectory(
        latents=torch.stack(explainer.states[::-1]),
        sigmas=tuple(sigmas.tolist()),
        steps=steps,
        convention="edit-friendly",
        stamp=stamp,
        context=context,
        vector=vector,
        guidance=text.guidance,
        noises=with_noiseless_last_step(torch.stack(explainer.noises[::-1])),
    )
    return Inversion(trajectory, start_after(model, trajectory).latent)


def start_after(model: Any, trajectory: ReferenceTrajectory, skip: int = 0) -> Start:
    """Where a replay that leaves out the first `skip` steps starts, and over which ladder it goes."""
    place = trajectory.steps - skip
    sigmas = torch.tensor(trajectory.sigmas[: place + 1]).flip(0)
    return Start(start_latent(model, trajectory.latents[place], trajectory.sigmas[place]), sigmas)


def replay_sampler(trajectory: ReferenceTrajectory) -> comfy.samplers.KSAMPLER:
    """A SAMPLER that takes at each step the noise of the trajectory; with its own text it leads to its pictures."""
    return comfy.samplers.KSAMPLER(sample_replay, extra_options={"trajectory": trajectory})


def replay(model: Any, trajectory: ReferenceTrajectory, text: Text, skip: int = 0) -> Tensor:
    """The pictures sampled with the noises of the trajectory, as clean latents for VAE Decode."""
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
    """A sampler function: DDPM with the noises of the trajectory. Its last state is the picture itself."""
    if len(sigmas) < 2:
        return x
    noises = _noises_for(model, x, extra_args, trajectory)
    top, bottom = _span(trajectory, sigmas.tolist())
    noises = noises[bottom:top].repeat(1, len(x) // trajectory.images, 1, 1, 1).to(x)
    ladder = trajectory.sigmas[bottom : top + 1]
    x = _recorded(trajectory.latents[top].to(x), x / state_scale(ladder[-1]))
    for place, step in enumerate(ddpm_replay(x, noises, ladder, partial(_denoised, model, extra_args))):
        x = step.state
        _announce(callback, place, step)
    return x * state_scale(ladder[0]) if bottom else x


class _Explainer:
    """A sampler function that starts on a clean picture and keeps its noised states and the noise of every step."""

    def __init__(self, noises: Tensor) -> None:
        self.states: list[Tensor] = []
        self.noises: list[Tensor] = []
        self._drawn = noises
        self._text: tuple[Tensor, Tensor | None] | None = None

    @property
    def text(self) -> tuple[Tensor, Tensor | None]:
        assert self._text is not None
        return self._text

    def __call__(
        self, model: Any, x: Tensor, sigmas: Tensor, extra_args: dict[str, Any], callback: Any, disable: Any
    ) -> Tensor:
        self._text = shown_text(model.inner_model, len(x))
        ladder: list[float] = sigmas.flip(0).tolist()
        states = noised_states(x, self._drawn.to(x), ladder)
        self.states.append(states[-1].cpu())
        for place, step in enumerate(ddpm_inversion(states, ladder, partial(_denoised, model, extra_args))):
            self.states.append(step.state.cpu())
            self.noises.append(step.noise.cpu())
            _announce(callback, place, step)
        return x


def _check_prompts(text: Text, pictures: int) -> None:
    for prompts, _ in text.positive:
        if len(prompts) not in (1, pictures):
            raise ValueError(
                f"The text holds {len(prompts)} prompts, but there are {pictures} pictures to invert. Give one prompt "
                "for all, or one for each picture."
            )


def _announce(callback: Callable[[dict[str, Any]], None] | None, place: int, step: ReverseStep) -> None:
    """Progress and preview."""
    if callback is not None:
        x, sigma = step.state * state_scale(step.target), step.sigma
        callback({"x": x, "i": place, "sigma": sigma, "sigma_hat": sigma, "denoised": step.denoised})


def _denoised(model: Callable[..., Tensor], extra_args: dict[str, Any], x: Tensor, sigma: float) -> Tensor:
    return denoise_at(model, extra_args, x * state_scale(sigma), sigma)


def _recorded(latent: Tensor, x: Tensor) -> Tensor:
    """The start of a replay: the trajectory's own latent, where a sampler node brings that.

    It comes rounded by the scales of LATENT and sampler, and a replay with the text of the inversion holds to the bit
    where it starts so; the least rounding grows with every step.
    """
    own = latent.repeat(len(x) // len(latent), 1, 1, 1)
    return own if (own - x).abs().max() <= ROUNDING * own.abs().max() else x


def _noises_for(model: Any, x: Tensor, extra_args: dict[str, Any], trajectory: ReferenceTrajectory) -> Tensor:
    """The noises of the trajectory; a run that they do not belong to is refused with a ValueError."""
    if trajectory.noises is None:
        raise ValueError(
            f"This trajectory ({trajectory.convention}) holds no noises to replay. Invert the picture with Invert "
            "Image (edit-friendly)."
        )
    family = map_model(model.inner_model.model_patcher).name
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
    """The first and the last point of the trajectory's ladder that a run passes, which leaves out none between."""
    indices = [trajectory.index(sigma) for sigma in falling]
    if indices != list(range(indices[0], indices[-1] - 1, -1)):
        raise ValueError(
            f"The sampler leaves out points of the trajectory's {trajectory.steps} steps, so their noises cannot be "
            "replayed. Connect the SIGMAS of Invert Image (edit-friendly)."
        )
    return indices[0], indices[-1]
