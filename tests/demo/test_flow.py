"""The demo's flow transformer: the arithmetic it is trained by is the host's, and so is what the host samples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from semblance.demo.training.flow import NAME, TOKENS, Flow, draw_times, file_layout, host_layout
from semblance.demo.training.flux import FLOW_CONFIG, build_flow, velocity
from semblance.demo.training.parts import LATENT_SCALE, load_weights
from semblance.host.demo_models import FluxLatents, load_demo

CAPTIONS = ["a cat on the left, ocean colours, dotted", ""]


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def network() -> Any:
    """With every weight away from where it starts, so that no branch is silent."""
    generator = torch.Generator().manual_seed(3)
    network = build_flow()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return network


@pytest.mark.parametrize("size", [(16, 16), (12, 20)])
def test_the_trained_arithmetic_is_the_hosts(network: Any, size: tuple[int, int]) -> None:
    latents, context, pooled = seeded(2, 4, *size), seeded(2, TOKENS, 64, seed=1), seeded(2, 64, seed=2)
    times = torch.tensor([0.2, 0.9])
    with torch.no_grad():
        mine, hosts = velocity(network, latents, times, context, pooled), network(latents, times, context, pooled)
    assert (mine - hosts).norm() / hosts.norm() < 1e-5


def test_it_can_be_trained_through(network: Any) -> None:
    latents, context, pooled = seeded(2, 4, 16, 16), seeded(2, TOKENS, 64, seed=1), seeded(2, 64, seed=2)
    velocity(network, latents, torch.tensor([0.2, 0.9]), context, pooled).pow(2).mean().backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    network.zero_grad(set_to_none=True)
    # The last block's text goes nowhere in a double block that is followed by single ones; here all of it is read.
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients.values())


def test_the_host_samples_what_the_training_shows() -> None:
    """From words to the next latent: tokenizer, encoder, latents' scale, time and prediction are all the same."""
    from comfy.model_management import load_models_gpu

    demo, device = load_demo("Flux"), torch.device("cpu")
    network = build_flow()
    network.load_state_dict(host_layout(load_weights(NAME)))
    prompt = Flow(network, device).text(CAPTIONS)
    noisy, times = seeded(2, 4, 16, 16), torch.tensor([0.6, 0.6])
    encoded = [demo.clip.encode_from_tokens(demo.clip.tokenize(c), return_pooled=True) for c in CAPTIONS]
    context, pooled = (torch.cat(parts) for parts in zip(*encoded, strict=True))
    load_models_gpu([demo.model])
    with torch.no_grad():
        clean = noisy - 0.6 * velocity(network, noisy, times, *prompt)
        made = demo.model.model.apply_model(noisy, times, c_crossattn=context, y=pooled)
    assert context.shape[1] == TOKENS
    assert (made - clean).norm() / clean.norm() < 2e-3
    assert FluxLatents.scale_factor == LATENT_SCALE["flux"]


def test_a_prompt_longer_than_any_in_training_is_read_whole() -> None:
    demo = load_demo("Flux")
    long = "a cat on the left and " * 8 + "a dog"
    context = demo.clip.encode_from_tokens(demo.clip.tokenize(long))
    assert TOKENS < context.shape[1] <= 77


def test_its_file_is_in_the_layout_of_flux() -> None:
    from comfy.model_detection import detect_unet_config

    weights = file_layout(build_flow().state_dict())
    assert weights.keys() == load_weights(NAME).keys()
    found: Any = detect_unet_config(weights, "")
    assert found["image_model"] == "flux" and not found["guidance_embed"]
    assert {found[name] for name in ("depth", "depth_single_blocks")} == {
        FLOW_CONFIG["depth"],
        FLOW_CONFIG["depth_single_blocks"],
    }


def test_times_cover_the_whole_way_and_one_in_eight_is_noise() -> None:
    times = draw_times(4000, torch.Generator().manual_seed(0))
    assert 0 <= times.min() < 0.05 and (times == 1).float().mean() == pytest.approx(1 / 8, abs=0.02)
