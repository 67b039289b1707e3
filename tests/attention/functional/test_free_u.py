"""FreeU's two halves in closed form, on the whole picture and on single waves."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from semblance.attention.functional.free_u import damp_low_frequencies, strengthen

SIZE = (8, 12)


def wave(rows: int, columns: int) -> Tensor:
    """A cosine of so many periods over the height and over the width."""
    height, width = SIZE
    down, along = torch.arange(height)[:, None] / height, torch.arange(width)[None] / width
    return torch.cos(2 * math.pi * (rows * down + columns * along)).expand(2, 3, height, width)


def test_the_first_half_of_the_channels_is_strengthened_and_the_rest_left() -> None:
    hidden = torch.randn(2, 6, 4, 4, generator=torch.Generator().manual_seed(0))
    made = strengthen(hidden, 1.4)
    assert torch.equal(made[:, :3], hidden[:, :3] * 1.4) and torch.equal(made[:, 3:], hidden[:, 3:])


def test_the_mean_is_damped_and_waves_above_the_cut_are_left() -> None:
    assert torch.allclose(damp_low_frequencies(torch.ones(1, 1, *SIZE), 0.2), torch.full((1, 1, *SIZE), 0.2))
    for high in (wave(2, 0), wave(0, 3), wave(2, 2)):
        assert torch.allclose(damp_low_frequencies(high, 0.2), high, atol=1e-6)


@pytest.mark.parametrize(("rows", "columns"), [(1, 0), (0, 1), (1, 1)])
def test_of_a_wave_of_one_period_the_negative_half_of_its_spectrum_is_damped(rows: int, columns: int) -> None:
    """As in the authors' code, whose box of low frequencies holds -1 and 0 but not 1."""
    slow = wave(rows, columns)
    assert torch.allclose(damp_low_frequencies(slow, 0.2), slow * (1 + 0.2) / 2, atol=1e-6)


def test_factor_one_changes_nothing_and_parts_add_up() -> None:
    one, other = torch.randn(2, 1, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(damp_low_frequencies(one, 1.0), one, atol=1e-6)
    whole = damp_low_frequencies(one + 2 * other, 0.3)
    assert torch.allclose(whole, damp_low_frequencies(one, 0.3) + 2 * damp_low_frequencies(other, 0.3), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_comes_back_and_is_computed_in_single(dtype: torch.dtype) -> None:
    skip = torch.randn(1, 2, *SIZE, generator=torch.Generator().manual_seed(2)).to(dtype)
    assert torch.equal(damp_low_frequencies(skip, 0.5), damp_low_frequencies(skip.float(), 0.5).to(dtype))
