"""What a subject's words get of the attention, in closed form."""

from __future__ import annotations

import pytest
import torch

from semblance.attention.functional.word_maps import attention_to_words, subject_mask, word_columns


def test_several_words_of_a_subject_count_as_their_mean_and_an_absent_one_not_at_all() -> None:
    shares = word_columns((((1, 3), (2,)), ((), (0,))), 5)
    assert shares.shape == (2, 5, 2)
    assert shares[0, :, 0].tolist() == [0, 0.5, 0, 0.5, 0] and shares[0, :, 1].tolist() == [0, 0, 1, 0, 0]
    assert not shares[1, :, 0].any() and shares[1, :, 1].tolist() == [1, 0, 0, 0, 0]


def test_attention_that_is_the_same_to_all_words_gives_each_its_share_of_the_text() -> None:
    query, key = torch.zeros(2, 6, 8), torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
    maps = attention_to_words(query, key, 2, word_columns((((0,),), ((1, 2),)), 4))
    torch.testing.assert_close(maps, torch.full((2, 1, 6), 0.25))


def test_maps_are_the_mean_over_heads_of_softmax_attention() -> None:
    generator = torch.Generator().manual_seed(1)
    query, key = torch.randn(1, 5, 8, generator=generator), torch.randn(1, 3, 8, generator=generator)
    maps = attention_to_words(query, key, 2, word_columns((((2,),),), 3))
    heads = [(query[0, :, part] @ key[0, :, part].T / 2).softmax(dim=1) for part in (slice(0, 4), slice(4, 8))]
    torch.testing.assert_close(maps[0, 0], torch.stack(heads).mean(dim=0)[:, 2])


@pytest.mark.parametrize("grid", [(4, 6), (8, 12)])
def test_masks_are_where_a_map_is_high_and_those_of_all_subjects_together(grid: tuple[int, int]) -> None:
    maps = torch.zeros(1, 2, 4, 6)
    maps[0, 0, :, :2] = 1
    maps[0, 1, :, 4:] = 3  # each is split by a threshold of its own
    mask = subject_mask(maps, *grid).unflatten(1, grid)[0]
    width = grid[1]
    assert mask[:, : width // 3].all() and mask[:, -width // 3 :].all()
    assert not mask[:, width // 2 - 1 : width // 2 + 1].any()
