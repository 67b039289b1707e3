"""Matches of patches are those of all distances at once, though only a subject's rows are looked at, in tiles."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from semblance.attention.functional import correspondence
from semblance.attention.functional.correspondence import OUTSIDE, nearest_patches


@pytest.mark.parametrize("tile", [7, 64, 4096])
def test_rows_outside_the_subject_and_tiles_change_nothing(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(correspondence, "TILE", tile)
    noise = torch.Generator().manual_seed(0)
    target, source = (functional.normalize(torch.randn(100, 32, generator=noise), dim=1) for _ in range(2))
    subject = torch.rand(100, generator=noise) < 0.3
    everywhere = (1 - source @ target.T).masked_fill(~subject[:, None], OUTSIDE).min(dim=0)
    index, distance = nearest_patches(target, source, subject)
    assert torch.equal(index, everywhere.indices)
    assert torch.allclose(distance, everywhere.values, rtol=0, atol=1e-6)


def test_without_a_subject_every_distance_is_the_largest() -> None:
    index, distance = nearest_patches(torch.ones(3, 2), torch.ones(4, 2), torch.zeros(4, dtype=torch.bool))
    assert index.tolist() == [0, 0, 0] and distance.tolist() == [OUTSIDE] * 3
