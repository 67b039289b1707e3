"""What a tuning makes small: for a diffusion model, the error of its prediction at a random noise level."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import comfy.model_sampling
import torch
from torch import Tensor


class Objective(Protocol):
    """A loss of a model on given latents."""

    def __call__(
        self,
        base_model: Any,
        latents: Tensor,
        conditioning: Mapping[str, Any],
        transformer_options: Mapping[str, Any],
        generator: torch.Generator,
    ) -> Tensor:
        """The mean loss over the rows of `latents`, a scalar that gradients can be taken of.

        `base_model` is the host's BaseModel; `latents` (rows, channels, ...) are in its own scale, float32, where it
        runs; `conditioning` are further arguments of `apply_model`, a row each. All chance comes from `generator`, on
        the CPU.
        """
        ...


def objective_of(model: Any) -> Objective:
    """The objective of a MODEL: its BaseModel's own attribute `tuning_objective`, else by how ComfyUI samples it.

    Raises ValueError for a model that predicts nothing a loss is known for.
    """
    own: Objective | None = getattr(model.model, "tuning_objective", None)
    if own is not None:
        return own
    prediction_weight(model.get_model_object("model_sampling"), torch.ones(1))
    return diffusion_loss


def diffusion_loss(
    base_model: Any,
    latents: Tensor,
    conditioning: Mapping[str, Any],
    transformer_options: Mapping[str, Any],
    generator: torch.Generator,
    starts: float = 0.0,
) -> Tensor:
    """The squared error of what the model predicts (noise, v or flow), at a noise level of its own for each row.

    A share `starts` of the rows is noise alone, as sampling begins with. The schedule's last level still holds a trace
    of the picture, from which a model learns nothing about colours that it must settle without one.
    """
    sampling = base_model.model_sampling
    sigma = noise_levels(sampling, len(latents), generator).to(latents)
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    noisy = sampling.noise_scaling(sigma, noise, latents)
    if starts:
        begins = (torch.rand(len(latents), generator=generator) < starts).to(latents.device)
        sigma = torch.where(begins, sigma.new_tensor(float(sampling.sigma_max)), sigma)
        alone = sampling.noise_scaling(sigma, noise, torch.zeros_like(latents), max_denoise=True)
        noisy = torch.where(begins.reshape(-1, *[1] * (latents.ndim - 1)), alone, noisy)
    options = {**transformer_options, "sigmas": sigma, "cond_or_uncond": [0]}
    denoised = base_model.apply_model(noisy, sigma, transformer_options=options, **conditioning)
    error = (denoised.float() - latents).square().flatten(1).mean(1)  # (rows,)
    return (prediction_weight(sampling, sigma) * error).mean()


def noise_levels(sampling: Any, rows: int, generator: torch.Generator) -> Tensor:
    """Random noise levels (rows,), float32: evenly spread over the timesteps, as models are trained.

    Each row's comes from a share of the timesteps of its own, so that several rows disagree less by chance.
    """
    least, most = float(sampling.sigma_min), float(sampling.sigma_max)
    places = ((torch.arange(rows) + torch.rand(rows, generator=generator)) / rows).tolist()
    # Beyond its ends the host's schedule answers with 0 and with a number that stands for infinity.
    return torch.tensor([min(max(float(sampling.percent_to_sigma(place)), least), most) for place in places])


def prediction_weight(sampling: Any, sigma: Tensor) -> Tensor:
    """By what a squared error of the denoised latent is multiplied to be that of the model's own prediction.

    Every `calculate_denoised` of the host is linear in the prediction; this is the inverse square of its factor. Raises
    ValueError for a kind that is not known.
    """
    kinds: Any = comfy.model_sampling
    squared = sigma.square()
    if isinstance(sampling, (kinds.IMG_TO_IMG, kinds.IMG_TO_IMG_FLOW)):
        raise _unknown(sampling)
    if isinstance(sampling, kinds.X0):
        return torch.ones_like(sigma)
    if isinstance(sampling, kinds.V_PREDICTION):  # and EDM, whose factor is the same
        own = float(sampling.sigma_data) ** 2
        return (squared + own) / (squared * own)
    if isinstance(sampling, kinds.V_PREDICTION_DDPM):
        return (squared + 1) / squared
    if isinstance(sampling, (kinds.EPS, kinds.CONST)):
        return 1 / squared
    raise _unknown(sampling)


def _unknown(sampling: Any) -> ValueError:
    found = "/".join(base.__name__ for base in type(sampling).__bases__)
    return ValueError(
        f"This model samples by {found}, for which Semblance knows no way to tune. Load a model that predicts noise, v "
        "or flow, without other sampling nodes."
    )
