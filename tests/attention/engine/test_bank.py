"""A bank keeps what it is given, makes a thing once, and forgets everything at once."""

from __future__ import annotations

from itertools import count

import pytest
import torch

from semblance.attention.engine.bank import FeatureBank
from semblance.attention.engine.call import AttentionSite


def test_what_is_remembered_is_recalled_itself() -> None:
    bank, tensor = FeatureBank(), torch.ones(2)
    bank.remember("query", tensor)
    assert bank.recall("query") is tensor and "query" in bank and len(bank) == 1


def test_remembering_again_replaces() -> None:
    bank = FeatureBank()
    bank.remember("query", torch.zeros(1))
    bank.remember("query", torch.ones(1))
    assert bank.recall("query").item() == 1 and len(bank) == 1


def test_a_name_nothing_was_kept_under_is_a_key_error() -> None:
    with pytest.raises(KeyError, match="query"):
        FeatureBank().recall("query")
    assert "query" not in FeatureBank()


def test_a_thing_asked_for_once_is_made_once() -> None:
    bank, made = FeatureBank(), count()
    first, second = (bank.once("keys", lambda: torch.full((1,), float(next(made)))) for _ in range(2))
    assert first is second and next(made) == 1


def test_a_thing_that_could_not_be_made_is_made_the_next_time() -> None:
    bank = FeatureBank()
    with pytest.raises(RuntimeError):
        bank.once("keys", lambda: torch.ones(1) @ torch.ones(2))
    assert "keys" not in bank and bank.once("keys", lambda: torch.ones(3)).shape == (3,)


def test_pairs_are_kept_together() -> None:
    bank = FeatureBank()
    key, value = bank.once("keys", lambda: (torch.ones(2), torch.zeros(3)))
    assert (key.shape, value.shape) == ((2,), (3,))
    assert len(bank) == 1


def test_sites_and_names_make_places_of_their_own() -> None:
    bank = FeatureBank()
    for number in (1, 2):
        for kind in ("self", "cross"):
            bank.remember((AttentionSite(kind, "output", number), "query"), torch.full((1,), number))
    assert len(bank) == 4
    assert bank.recall((AttentionSite("self", "output", 2), "query")).item() == 2


def test_clearing_forgets_everything() -> None:
    bank = FeatureBank()
    bank.remember("query", torch.ones(2))
    bank.clear()
    assert len(bank) == 0 and bank.bytes == 0 and "query" not in bank


def test_the_description_tells_names_shapes_and_memory() -> None:
    bank = FeatureBank()
    bank.remember("query", torch.zeros(2, 64, 2048))
    bank.once("keys", lambda: (torch.zeros(4, 8, dtype=torch.float16), torch.zeros(4, 2)))
    assert bank.bytes == 2 * 64 * 2048 * 4 + 4 * 8 * 2 + 4 * 2 * 4
    assert repr(bank) == "FeatureBank of 2 entries, 1.0 MB\n  query: (2, 64, 2048)\n  keys: (4, 8), (4, 2)"
