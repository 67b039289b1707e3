"""The objective against a page of plain torch, for models that predict noise, v or flow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.model_sampling
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor
from torch.nn import functional

from semblance.host.binding.unet_sites import attention_layer, attention_sites
from semblance.host.styledrop.adapter_layers import adapted_layers, fresh_tensors
from semblance.host.styledrop.draws import draws_of_step
from semblance.host.styledrop.examples import in_calls, prepare
from semblance.host.styledrop.objective import diffusion_loss, noise_levels, objective_of, prediction_weight
from semblance.host.styledrop.training_copy import deep_copy
from semblance.host.styledrop.tuning import adapted
from semblance.tests.support.speeds import slow
from semblance.tests.tiny_models import Family

from .conftest import Flow, examples, recipe

CASES = [("sd15", "eps"), ("sd15", "v"), ("sd15", "flow"), slow(("sdxl", "eps")), slow(("sdxl", "v"))]


def trained(model: ModelPatcher, kind: Family) -> tuple[Any, dict[str, Tensor], Any]:
    """A copy of the model, an adapter for it that is no longer fresh, and a step's rows."""
    copy = deep_copy(model)
    layers = adapted_layers(copy, recipe(model))
    tensors = fresh_tensors(layers, 4, seed=1)
    for number, (name, tensor) in enumerate(tensors.items()):
        if name.endswith(".up"):
            tensor.copy_(0.05 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(number)))
    prepared = prepare(copy, examples(kind, 2).each, torch.device("cpu"))
    (rows,) = in_calls([(prepared[0], False), (prepared[1], True)])
    return copy, {name: tensor.requires_grad_() for name, tensor in tensors.items()}, rows


def plain_loss(base: Any, tensors: dict[str, Tensor], rows: Any, prediction: str, seed: int) -> Tensor:
    """The same loss from the paper's formulas: noise added by hand, the network asked, and its own target."""
    generator = draws_of_step(seed, 0)
    sampling, unet, count = base.model_sampling, base.diffusion_model, len(rows.latents)
    places = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    sigma = torch.tensor([sampling.percent_to_sigma(float(place)) for place in places])[:, None, None, None]
    noise = torch.randn(rows.latents.shape, generator=generator)
    if prediction == "flow":
        noisy, target, shown = sigma * noise + (1 - sigma) * rows.latents, noise - rows.latents, None
        shown = noisy
    else:
        noisy = rows.latents + sigma * noise
        shown = noisy / (sigma**2 + 1).sqrt()
        target = noise if prediction == "eps" else (noise - sigma * rows.latents) / (sigma**2 + 1).sqrt()

    def add(name: str) -> Callable[..., Any]:
        down, up = tensors[f"{name}.down"], tensors[f"{name}.up"]
        return lambda module, inputs: inputs[0] + functional.gelu(inputs[0] @ down.T) @ up.T

    sites = {site.name: site for site in attention_sites(unet)}
    handles = [
        attention_layer(unet, sites[name]).to_out.register_forward_pre_hook(add(name))
        for name in sites
        if f"{name}.down" in tensors
    ]
    try:
        timestep = sampling.timestep(sigma.flatten()).float()
        conditioning = dict(rows.conditioning)
        found = unet(shown, timestep, context=conditioning.pop("c_crossattn"), **conditioning)
    finally:
        for handle in handles:
            handle.remove()
    return functional.mse_loss(found, target)


@pytest.mark.parametrize(("kind", "prediction"), CASES)
def test_loss_and_gradient_are_those_of_a_page_of_plain_torch(
    model_of: Callable[..., ModelPatcher], kind: Family, prediction: str
) -> None:
    model = model_of(kind, prediction)
    copy, tensors, rows = trained(model, kind)
    copy.patch_model()
    with adapted(copy, tensors, recipe(model)) as tuned:
        options = tuned.model_options["transformer_options"]
        loss = diffusion_loss(tuned.model, rows.latents, rows.conditioning, options, draws_of_step(5, 0))
    gradients = torch.autograd.grad(loss, list(tensors.values()))
    expected = plain_loss(copy.model, tensors, rows, prediction, seed=5)
    wanted = torch.autograd.grad(expected, list(tensors.values()))
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
    for found, right in zip(gradients, wanted, strict=True):
        assert (found - right).norm() <= 1e-3 * right.norm()


def test_every_noise_level_of_the_schedule_is_drawn_and_none_beyond_it(model_of: Callable[..., ModelPatcher]) -> None:
    for prediction in ("eps", "flow"):
        sampling: Any = model_of("sd15", prediction).get_model_object("model_sampling")
        levels = noise_levels(sampling, 4000, torch.Generator().manual_seed(0))
        assert float(sampling.sigma_min) <= levels.min() and levels.max() <= float(sampling.sigma_max) * (1 + 1e-6)
        timesteps = sampling.timestep(levels)
        assert float(timesteps.float().mean()) == pytest.approx(500, abs=5)


@pytest.mark.parametrize(
    "kind",
    [
        comfy.model_sampling.EPS,
        comfy.model_sampling.V_PREDICTION,
        comfy.model_sampling.EDM,
        comfy.model_sampling.V_PREDICTION_DDPM,
        comfy.model_sampling.X0,
        comfy.model_sampling.CONST,
    ],
)
def test_the_weight_turns_an_error_of_the_latent_into_one_of_the_prediction(kind: type) -> None:
    class Sampling(comfy.model_sampling.ModelSamplingContinuousEDM, kind):
        pass

    sampling, sigma = Sampling(), torch.tensor([0.3, 2.0])
    noisy, predicted, other = (torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(n)) for n in range(3))
    latents = (sampling.calculate_denoised(sigma, each, noisy) for each in (predicted, other))
    error = torch.sub(*latents).square().flatten(1).mean(1)
    right = (predicted - other).square().flatten(1).mean(1)
    assert torch.allclose(prediction_weight(sampling, sigma) * error, right, rtol=1e-4)


def test_a_model_with_an_objective_of_its_own_is_tuned_by_that(model_of: Callable[..., ModelPatcher]) -> None:
    model = deep_copy(model_of())
    assert objective_of(model) is diffusion_loss
    model.model.tuning_objective = own = object()
    assert objective_of(model) is own


def test_a_model_that_is_sampled_in_an_unknown_way_is_refused(model_of: Callable[..., ModelPatcher]) -> None:
    class Strange(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.IMG_TO_IMG_FLOW):
        pass

    model = model_of().clone()
    model.add_object_patch("model_sampling", Strange())
    with pytest.raises(ValueError, match="knows no way to tune"):
        objective_of(model)
    assert isinstance(Flow(), comfy.model_sampling.CONST)


def test_rows_of_noise_alone_show_the_network_nothing_of_the_picture(model_of: Callable[..., ModelPatcher]) -> None:
    """And their loss is still that of the picture, which only what is tuned can tell."""
    copy, _, rows = trained(model_of("sd15", "v"), "sd15")
    seen: list[Tensor] = []
    handle = copy.model.diffusion_model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    losses = [
        diffusion_loss(copy.model, latents, rows.conditioning, {}, draws_of_step(1, 0), starts=1.0)
        for latents in (rows.latents, rows.latents + 100)
    ]
    handle.remove()
    assert torch.equal(*seen)
    assert losses[1] > 100 * losses[0]
