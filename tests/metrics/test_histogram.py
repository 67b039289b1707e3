"""The colour histograms and their distance are those of StyleID's evaluation."""

from __future__ import annotations

import math

import pytest
import torch

from semblance.metrics.histogram import color_histogram, histogram_loss
from semblance.tests.support.frozen_cases import furthest, load_reference

TENSORS, CASE = load_reference("metrics")


def test_histograms_and_their_loss_are_the_authors() -> None:
    stylised, style = TENSORS["hist.in"], TENSORS["hist.target"]
    assert furthest(color_histogram(stylised), TENSORS["hist.h_in"]) <= 1e-5
    assert furthest(color_histogram(style), TENSORS["hist.h_target"]) <= 1e-5
    assert histogram_loss(stylised, style).tolist() == pytest.approx([CASE["hist_loss"]], abs=1e-5)


def test_pictures_above_256_pixels_are_resized_as_the_authors_do() -> None:
    stylised, style = (TENSORS[f"hist.big_{side}_u8"].float() / 255 for side in ("in", "target"))
    assert histogram_loss(stylised, style).tolist() == pytest.approx([CASE["hist_loss_resized_256"]], abs=1e-5)


def test_a_histogram_sums_to_one_for_each_picture() -> None:
    pictures = torch.rand(3, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    assert color_histogram(pictures).sum(dim=(1, 2, 3)).tolist() == pytest.approx([1] * 3, abs=1e-4)
    assert furthest(color_histogram(pictures)[1:2], color_histogram(pictures[1:2])) == 0


def test_the_same_colours_elsewhere_are_no_loss_and_one_style_stands_for_all() -> None:
    picture = torch.rand(1, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    both = torch.cat([picture.flip(3), 1 - picture])
    loss = histogram_loss(both, picture)
    assert loss[0] <= 1e-3
    assert 0.1 < loss[1] <= 1
    assert furthest(loss, histogram_loss(both, picture.expand(2, -1, -1, -1))) <= 1e-6


def test_values_beyond_a_picture_count_as_its_ends() -> None:
    picture = torch.tensor([-0.01, 1.02, 0.5]).view(1, 3, 1, 1)
    assert torch.equal(color_histogram(picture), color_histogram(picture.clamp(0, 1)))


def test_what_is_no_picture_is_refused() -> None:
    picture = torch.rand(2, 3, 4, 4)
    with pytest.raises(ValueError, match="There are 2 stylised and 3 style pictures"):
        histogram_loss(picture, torch.rand(3, 3, 4, 4))
    with pytest.raises(ValueError, match=r"NaN or infinity\), as a failed decoding gives"):
        histogram_loss(picture * math.nan, picture)
