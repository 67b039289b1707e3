"""The demo's text encoder keeps the embeddings of the words it knows alone, and gives the host CLIP's whole layout."""

from __future__ import annotations

import torch
from safetensors.torch import load_file

from semblance.demo.training.encoders import known_tokens
from semblance.demo.training.tokens import PAD_G, PAD_L
from semblance.host.files import DEMO_MODELS
from semblance.host.known_words import EMBEDDING, ROWS, VOCABULARY, known_alone, whole_vocabulary


def weights() -> dict[str, torch.Tensor]:
    table = torch.arange(2 * VOCABULARY, dtype=torch.float32).reshape(VOCABULARY, 2)
    return {EMBEDDING: table, "text_projection.weight": torch.ones(2, 2)}


def test_known_words_come_back_as_they_were_and_unknown_ones_are_zeros() -> None:
    known = torch.tensor([49407, 3, 320, 3])
    small = known_alone(weights(), known)
    assert small[EMBEDDING].shape == (3, 2) and small[ROWS].dtype == torch.int32
    whole = whole_vocabulary(small)
    assert whole.keys() == weights().keys() and whole[EMBEDDING].shape == (VOCABULARY, 2)
    assert torch.equal(whole[EMBEDDING][known], weights()[EMBEDDING][known])
    unknown = torch.ones(VOCABULARY, dtype=torch.bool)
    unknown[known] = False
    assert not whole[EMBEDDING][unknown].any()


def test_weights_that_are_whole_stay_as_they_are() -> None:
    whole = whole_vocabulary(weights())
    assert all(torch.equal(whole[name], weight) for name, weight in weights().items())


def test_the_demos_encoder_knows_every_word_that_captions_have() -> None:
    rows = load_file(DEMO_MODELS / "text_encoder.safetensors")[ROWS]
    assert set(known_tokens(seed=5, count=2000).tolist()) <= set(rows.tolist())
    assert {PAD_L, PAD_G} <= set(rows.tolist())
