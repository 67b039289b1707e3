"""Masks come down to the token grid as Pillow and torch would bring them there."""

from __future__ import annotations

import random

import numpy
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from semblance.attention.functional.attention import token_weights
from semblance.attention.functional.masks import fit_mask, lanczos_8bit, mask_on_grid


def pillow(levels: Tensor, height: int, width: int) -> Tensor:
    """Each picture of grey levels through Pillow's LANCZOS."""
    resized = [
        Image.fromarray(picture.numpy().astype(numpy.uint8)).resize((width, height), Image.Resampling.LANCZOS)
        for picture in levels
    ]
    return torch.stack([torch.from_numpy(numpy.array(picture)) for picture in resized]).float()


def levels(masks: int, height: int, width: int, seed: int, hard: bool) -> Tensor:
    noise = torch.rand(masks, height, width, generator=torch.Generator().manual_seed(seed))
    return ((noise > 0.5).float() * 255 if hard else noise * 255).round()


@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
@pytest.mark.parametrize("seed", range(25))
def test_lanczos_is_pillows_at_any_size(seed: int, hard: bool) -> None:
    sides = random.Random(seed)
    height, width, to_height, to_width = (sides.randint(1, 150) for _ in range(4))
    source = levels(2, height, width, seed, hard)
    for target in ((height, to_width), (to_height, width)):
        assert torch.equal(lanczos_8bit(source, *target), pillow(source, *target))
    if height - to_height > 2 * (width - to_width):  # where Pillow 13 goes down first
        to_height = max(height, to_height)
    assert torch.equal(lanczos_8bit(source, to_height, to_width), pillow(source, to_height, to_width))


@pytest.mark.parametrize("size", [(64, 1), (32, 1), (64, 64), (100, 33)])
def test_lanczos_is_pillows_at_the_edges(size: tuple[int, int]) -> None:
    for source in (levels(1, 64, 64, 1, False), levels(1, 1, 1, 2, False), levels(1, 2, 300, 3, True)):
        assert torch.equal(lanczos_8bit(source, *size), pillow(source, *size))


def test_a_mask_of_the_right_size_keeps_its_feathering_to_the_nearest_level() -> None:
    mask = torch.rand(2, 24, 16)
    torch.testing.assert_close(fit_mask(mask, 24, 16, feather=True), mask, atol=0.5 / 255 + 1e-6, rtol=0)


def test_without_feathering_a_mask_is_cut_at_one_half() -> None:
    mask = torch.tensor([[[0.0, 0.4, 0.497, 0.499, 0.5, 0.6, 1.0]]])
    # In 8 bits 0.499 is 127 of 255 and 0.5 is 128, as in diffusers.
    assert fit_mask(mask, 1, 7, feather=False).tolist() == [[[0, 0, 0, 0, 1, 1, 1]]]


def test_values_beyond_black_and_white_are_cut() -> None:
    assert fit_mask(torch.tensor([[[-3.0, 0.2, 7.0]]]), 1, 3, feather=True).tolist() == [[[0, pytest.approx(0.2), 1]]]


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_an_even_mask_stays_even_all_the_way(level: float) -> None:
    fitted = fit_mask(torch.full((1, 37, 91), level), 128, 72, feather=True)
    grid = mask_on_grid(fitted, 16, 9)
    assert grid.shape == (1, 144)
    torch.testing.assert_close(grid, torch.full((1, 144), level))


def test_the_grid_is_laid_out_row_by_row() -> None:
    mask = torch.zeros(1, 64, 96)
    mask[:, :32] = 1
    top, bottom = mask_on_grid(mask, 8, 12).reshape(8, 12).split(4)
    assert (top > 0.9).all() and (bottom < 0.1).all()


@pytest.mark.parametrize(("height", "width"), [(9, 13), (5, 7), (3, 4)])
def test_the_grid_is_torchs_bicubic_without_antialiasing(height: int, width: int) -> None:
    mask = torch.rand(3, 72, 104)
    expected = functional.interpolate(mask[:, None], size=(height, width), mode="bicubic", align_corners=False)
    torch.testing.assert_close(mask_on_grid(mask, height, width), expected.reshape(3, -1))


def test_a_share_counts_a_pictures_tokens_that_many_times() -> None:
    """Attention over a picture of share 3 equals attention over three copies of it."""
    generator = torch.Generator().manual_seed(1)
    query, one, other = (torch.randn(1, 1, tokens, 8, generator=generator) for tokens in (5, 2, 3))
    mask = token_weights((3.0, 1.0), (2, 3))
    assert mask is not None and mask.shape == (1, 1, 1, 5)
    keys, copies = torch.cat([one, other], 2), torch.cat([one, one, one, other], 2)
    shared = functional.scaled_dot_product_attention(query, keys, keys, attn_mask=mask)
    copied = functional.scaled_dot_product_attention(query, copies, copies)
    torch.testing.assert_close(shared, copied)


@pytest.mark.parametrize("shares", [(1.0, 1.0), (0.3, 0.3, 0.3), (2.0,)])
def test_equal_shares_need_no_mask(shares: tuple[float, ...]) -> None:
    assert token_weights(shares, (4,) * len(shares)) is None


def test_a_mask_stays_on_its_device() -> None:
    """Under --gpu-only ComfyUI keeps masks on the GPU; a fake tensor minds devices as a real one there does."""
    with FakeTensorMode():
        mask = torch.ones(2, 30, 40, device="cuda")
        fitted = fit_mask(mask, 64, 48, feather=True)
        assert fitted.device.type == "cuda" and mask_on_grid(fitted, 8, 6).device.type == "cuda"
