"""What a tuning on a masked transformer minimises."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from semblance.attention.functional.masked_tokens import mask_for_tuning, masked_cross_entropy, one_hot
from semblance.tests.support.amused import CODEBOOK, PIXELS, TRANSFORMER, VOCABULARY
from semblance.tests.support.amused_runs import HEIGHT, POSITIVE, WIDTH

from .conftest import Pair

ROWS = 2


def conditioning(rows: int) -> dict[str, Tensor]:
    micro = torch.tensor([[WIDTH * PIXELS, HEIGHT * PIXELS, 0, 0, 6]])
    parts = {"c_crossattn": POSITIVE.context, "y": POSITIVE.pooled, "micro": micro}
    return {name: part.repeat(rows, *[1] * (part.ndim - 1)) for name, part in parts.items()}


def latents() -> tuple[Tensor, Tensor]:
    tokens = torch.randint(CODEBOOK, (ROWS, HEIGHT, WIDTH), generator=torch.Generator().manual_seed(1))
    return tokens, one_hot(tokens, CODEBOOK)


def test_the_loss_is_diffusers_logits_in_the_formula(pair: Pair) -> None:
    amused, parts = pair
    tokens, latent = latents()
    model = parts.model.model
    with torch.no_grad():
        found = model.tuning_objective(model, latent, conditioning(ROWS), {}, torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(7)
    share, order = torch.rand(ROWS, generator=generator), torch.rand(ROWS, HEIGHT * WIDTH, generator=generator)
    shown, masked = mask_for_tuning(tokens.flatten(1), share, order, VOCABULARY - 1)
    given: Any = conditioning(ROWS)
    with torch.no_grad():
        shown = shown.reshape(tokens.shape)
        logits = amused.transformer(shown, given["c_crossattn"], given["y"], given["micro"])
    expected = masked_cross_entropy(logits.flatten(2).mT, tokens.flatten(1), masked, 0.1)
    assert torch.allclose(found, expected, rtol=1e-5)


def test_its_gradient_reaches_what_a_patch_adds(pair: Pair) -> None:
    """The base stays frozen; a patch of the options gets the gradient of the loss, at every layer."""
    model = pair[1].model.model
    _, latent = latents()
    added: dict[Any, Tensor] = {}

    def patch(output: Tensor, extra: dict[str, Any]) -> Tensor:
        place = extra.get("block"), extra.get("block_index"), extra.get("transformer_index"), len(added)
        added[place] = torch.zeros(1, requires_grad=True)
        return output + added[place]

    options = {"patches": {"attn1_output_patch": [patch]}}
    with torch.enable_grad():
        loss = model.tuning_objective(model, latent, conditioning(ROWS), options, torch.Generator().manual_seed(7))
        loss.backward()
    assert loss.ndim == 0 and len(added) >= TRANSFORMER["num_hidden_layers"]
    for place, parameter in added.items():
        assert parameter.grad is not None and parameter.grad.abs() > 0, place
    assert all(weight.grad is None for weight in model.diffusion_model.parameters())


def test_its_draws_are_its_generators(pair: Pair) -> None:
    model = pair[1].model.model
    _, latent = latents()
    with torch.no_grad():
        losses = [
            model.tuning_objective(model, latent, conditioning(ROWS), {}, torch.Generator().manual_seed(seed))
            for seed in (1, 1, 2)
        ]
    assert losses[0] == losses[1] != losses[2]
