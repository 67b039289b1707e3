"""The trainable transformer is the host's Flux, and is sampled in training as the host samples it."""

from __future__ import annotations

import comfy.model_sampling
import comfy.ops
import pytest
import torch
from comfy.ldm.flux.model import Flux

from semblance.demo.training.alignment import Aligned
from semblance.demo.training.flow import shifted
from semblance.demo.training.flux import FluxShape, FluxTransformer
from semblance.host.demo_models import FLUX_SHIFT

SMALL = FluxShape(hidden_size=64, num_heads=2, depth=2, depth_single_blocks=2)


def network(shape: FluxShape = SMALL) -> FluxTransformer:
    """With weights that no block is silent with."""
    torch.manual_seed(3)
    made = FluxTransformer(shape)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return made


@pytest.mark.parametrize("size", [(16, 16), (8, 12)])
def test_the_host_computes_what_was_trained(size: tuple[int, int]) -> None:
    ours = network()
    host = Flux(**SMALL.config(), dtype=torch.float32, operations=comfy.ops.disable_weight_init)
    host.load_state_dict(ours.state_dict())
    latents, times = torch.randn(2, 4, *size), torch.tensor([0.2, 1.0])
    context, pooled = torch.randn(2, 5, 64), torch.randn(2, 64)
    with torch.no_grad():
        expected = host(latents, times, context, pooled)
        assert (ours(latents, times, context, pooled) - expected).norm() / expected.norm() < 1e-4


def test_gradients_reach_every_weight() -> None:
    ours = network()
    ours(torch.randn(2, 4, 8, 8), torch.rand(2), torch.randn(2, 5, 64), torch.randn(2, 64)).pow(2).mean().backward()
    silent = [name for name, weight in ours.named_parameters() if weight.grad is None or not weight.grad.abs().sum()]
    assert not silent


def test_a_fresh_network_predicts_nothing_and_shows_the_states_of_its_single_blocks() -> None:
    states: list[torch.Tensor] = []
    fresh = FluxTransformer(SMALL)
    made = fresh(torch.randn(2, 4, 8, 8), torch.rand(2), torch.randn(2, 5, 64), torch.randn(2, 64), states)
    assert not made.any()
    assert [state.shape for state in states] == [(2, 16, 64)] * 2


def test_only_the_transformer_is_shipped() -> None:
    shipped = Aligned(FluxTransformer(SMALL), SMALL.hidden_size, 8).weights()
    assert shipped.keys() == network().state_dict().keys()


def test_times_are_spaced_as_the_host_spaces_them() -> None:
    host = comfy.model_sampling.ModelSamplingFlux()
    host.set_parameters(shift=FLUX_SHIFT)
    times = torch.linspace(0.01, 1, 12)
    assert torch.allclose(shifted(times), host.sigma(times), atol=1e-6)
