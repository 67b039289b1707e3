"""Our transformer and VQ model give what diffusers' give, from the same files."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from semblance.attention.functional.masked_tokens import one_hot
from semblance.host.masked.settings import transformer_settings, vq_settings
from semblance.host.masked.transformer import MaskedTransformer
from semblance.host.masked.vq import VQModel
from semblance.tests.support.amused import CODEBOOK, SIZES, TEXT, VOCABULARY, Amused, Size, weights_of
from semblance.tests.support.frozen_cases import furthest


def ours(amused: Amused) -> MaskedTransformer:
    weights = weights_of(amused.transformer)
    settings = transformer_settings({n: tuple(t.shape) for n, t in weights.items()}, amused.transformer.config)
    made = MaskedTransformer(settings, dtype=torch.float32)
    made.load_state_dict(weights)
    return made.eval()


def inputs(height: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(3)
    tokens = torch.randint(CODEBOOK, (2, height, width))
    tokens[torch.rand(tokens.shape) < 0.5] = VOCABULARY - 1
    micro = torch.tensor([[256, 192, 0, 0, 6]]).expand(2, -1)
    return tokens, torch.randn(2, 7, TEXT), torch.randn(2, TEXT), micro


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_logits_equal_diffusers(size: Size) -> None:
    amused = Amused.of(size)
    tokens, context, pooled, micro = inputs(6, 4)
    expected = amused.transformer(tokens, context, pooled, micro)
    found = ours(amused)(one_hot(tokens, CODEBOOK), None, context, pooled, micro=micro)
    assert expected.std() > 0.1
    assert furthest(found, expected) <= 1e-4


@torch.no_grad()
def test_an_odd_number_of_tokens_is_predicted_whole_by_the_model_that_halves_them() -> None:
    amused = Amused.of("512")
    tokens, context, pooled, micro = inputs(5, 7)
    expected = amused.transformer(tokens, context, pooled, micro)[..., :5, :7]
    found = ours(amused)(one_hot(tokens, CODEBOOK), None, context, pooled, micro=micro)
    assert furthest(found, expected) <= 1e-4


@pytest.mark.parametrize("attends", [False, True])
@torch.no_grad()
def test_tokens_and_pictures_equal_diffusers(attends: bool) -> None:
    amused = Amused.of("256", vq={"mid_block_add_attention": attends})
    weights = weights_of(amused.vq)
    model = VQModel(vq_settings({n: tuple(t.shape) for n, t in weights.items()}, amused.vq.config))
    model.load_state_dict(weights)
    pixels = torch.rand(2, 3, 24, 16)
    latents = amused.vq.encode(pixels).latents
    tokens = amused.vq.quantize(latents)[2][2].reshape(2, 6, 4)
    encoded = model.encode(pixels)
    assert torch.equal(encoded, one_hot(tokens, CODEBOOK))
    assert len(tokens.unique()) > 4
    expected = amused.vq.decode(tokens, force_not_quantize=True, shape=(2, 6, 4, 8)).sample
    assert furthest(model.decode(encoded), expected) <= 1e-4
