"""The arithmetic of picture and text embeddings, in closed form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from semblance.attention.functional.embeddings import COMBINATIONS, combine_pictures, mean_phrase, subtract_text

ONE, TWO, THREE = (torch.tensor([[x, y]]) for x, y in ((3.0, 4.0), (0.0, 2.0), (1.0, 0.0)))


def combined(combination: str, weights: tuple[float, ...], *pictures: Tensor) -> list[float]:
    (joined,), shares = combine_pictures(pictures, weights, combination)  # pyright: ignore[reportArgumentType]
    assert shares == (1.0,) and joined.shape == pictures[0].shape
    return joined[0].tolist()


def test_concatenated_pictures_keep_their_own_tokens_and_weights() -> None:
    pictures, shares = combine_pictures([ONE, TWO], [0.5, 2.0], "concatenate")
    assert shares == (0.5, 2.0)
    assert pictures[0] is ONE and pictures[1] is TWO


def test_add_is_the_weighted_sum() -> None:
    assert combined("add", (1.0, 0.5, -1.0), ONE, TWO, THREE) == [2.0, 5.0]


def test_average_is_the_weighted_mean() -> None:
    assert combined("average", (1.0, 3.0), ONE, TWO) == [0.75, 2.5]


def test_subtract_takes_the_mean_of_the_others_off_the_first() -> None:
    assert combined("subtract", (1.0, 1.0, 2.0), ONE, TWO, THREE) == [2.0, 3.0]


def test_norm_average_keeps_the_mean_length_whatever_the_lengths() -> None:
    # Directions (0.6, 0.8) and (0, 1) add up to (0.6, 1.8); the lengths are 5 and 2.
    direction = torch.tensor([0.6, 1.8])
    expected = direction / direction.norm() * 3.5
    assert combined("norm average", (1.0, 1.0), ONE, TWO) == pytest.approx(expected.tolist())


@pytest.mark.parametrize("combination", [name for name in COMBINATIONS if name != "concatenate"])
def test_one_picture_of_weight_one_stays_itself(combination: str) -> None:
    assert combined(combination, (1.0,), ONE) == pytest.approx([3.0, 4.0])


@pytest.mark.parametrize("combination", ["average", "norm average"])
def test_only_the_ratio_of_weights_counts_in_a_mean(combination: str) -> None:
    assert combined(combination, (1.0, 2.0), ONE, TWO) == pytest.approx(combined(combination, (10.0, 20.0), ONE, TWO))


@pytest.mark.parametrize("combination", [name for name in COMBINATIONS if name != "concatenate"])
def test_patch_states_are_combined_patch_by_patch(combination: str) -> None:
    patches = [torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    (joined,), _ = combine_pictures(patches, (1.0, 0.5), combination)  # pyright: ignore[reportArgumentType]
    for patch in range(3):
        alone, _ = combine_pictures([picture[:, patch] for picture in patches], (1.0, 0.5), combination)  # pyright: ignore[reportArgumentType]
        torch.testing.assert_close(joined[:, patch], alone[0])


def test_crops_of_one_picture_count_as_their_mean() -> None:
    crops = torch.cat([ONE, THREE])
    assert combined("add", (1.0, 1.0), crops[:1] * 0 + crops.mean(0), TWO) == [2.0, 4.0]
    (joined,), _ = combine_pictures([crops, TWO], (1.0, 1.0), "add")
    assert joined.tolist() == [[2.0, 4.0]]


def test_text_is_subtracted_in_raw_units() -> None:
    assert subtract_text(ONE, torch.tensor([10.0, 1.0]), 0.5).tolist() == [[-2.0, 3.5]]
    assert torch.equal(subtract_text(ONE, TWO[0], 0.0), ONE)


def test_phrases_of_weight_one_make_their_mean_and_one_phrase_is_itself() -> None:
    phrases = torch.cat([ONE, TWO])
    assert mean_phrase(phrases, (1.0, 1.0)).tolist() == [1.5, 3.0]
    assert mean_phrase(ONE, (1.0,)).tolist() == [3.0, 4.0]
    # Divided by the number of phrases: half the weight is half the subtraction.
    assert mean_phrase(ONE, (0.5,)).tolist() == [1.5, 2.0]
