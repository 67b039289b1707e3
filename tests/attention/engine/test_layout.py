"""Who and where: the layout reads ComfyUI's numbers right whatever they are, and refuses what it cannot read."""

from __future__ import annotations

from dataclasses import replace

import pytest

from semblance.attention.engine.call import AttentionSite
from semblance.attention.engine.layout import BatchLayout, Chunk, GuestRows

LATENT = (8, 8)


def test_numbers_name_the_chunks_in_the_order_of_the_rows() -> None:
    layout = BatchLayout.from_numbers([1, 0], 6, LATENT)
    assert [chunk.role for chunk in layout.chunks] == ["negative", "positive"]
    assert layout.conditional == (False, True)
    assert (layout.images, layout.host_rows, layout.rows) == (3, 6, 6)


def test_one_side_alone_and_a_number_twice_are_read_too() -> None:
    assert BatchLayout.from_numbers([1], 2, LATENT).conditional == (False,)
    assert BatchLayout.from_numbers([1, 0, 0], 9, LATENT).conditional == (False, True, True)
    assert BatchLayout.from_numbers([0], 1, LATENT).images == 1


def test_the_guiders_own_names_come_before_comfyuis_habit() -> None:
    layout = BatchLayout.from_numbers([2, 1, 0], 3, LATENT, roles=("negative", "middle", "positive"))
    assert [chunk.role for chunk in layout.chunks] == ["positive", "middle", "negative"]
    assert layout.conditional == (True, True, False)


def test_a_number_without_a_name_counts_as_conditional() -> None:
    assert BatchLayout.from_numbers([5], 1, LATENT).chunks == (Chunk("conditioning 5"),)
    assert BatchLayout.from_numbers([5], 1, LATENT).conditional == (True,)


@pytest.mark.parametrize("role", ["negative", "empty_negative_prompt", "uncond", "unconditional", "empty"])
def test_sides_that_guidance_pushes_away_from_are_not_conditional(role: str) -> None:
    assert not Chunk(role).conditional


@pytest.mark.parametrize("role", ["positive", "middle", "base", "conditioning 2", "cond"])
def test_all_other_sides_are_conditional(role: str) -> None:
    assert Chunk(role).conditional


def test_areas_go_with_their_chunks() -> None:
    layout = BatchLayout.from_numbers([1, 0], 2, LATENT, crops=[None, (4, 4, 0, 2)])
    assert [chunk.crop for chunk in layout.chunks] == [None, (4, 4, 0, 2)]


@pytest.mark.parametrize(("numbers", "rows"), [([1, 0], 3), ([], 2), ([0, 0, 0], 4)])
def test_rows_that_do_not_divide_are_refused_in_a_sentence(numbers: list[int], rows: int) -> None:
    with pytest.raises(ValueError, match=rf"called with {rows} rows for {len(numbers)} conditionings.*Bypass the node"):
        BatchLayout.from_numbers(numbers, rows, LATENT)


def test_guests_sit_after_the_rows_of_the_sampler_in_their_order() -> None:
    one, other = object(), object()
    guests = (GuestRows(one, "style", 1), GuestRows(one, "content", 2), GuestRows(other, "style", 1))
    layout = replace(BatchLayout.from_numbers([1, 0], 4, LATENT), guests=guests)
    assert (layout.host_rows, layout.rows) == (4, 8)
    assert layout.guest_rows(one, "style") == slice(4, 5)
    assert layout.guest_rows(one, "content") == slice(5, 7)
    assert layout.guest_rows(other, "style") == slice(7, 8)


def test_a_guest_that_does_not_ride_is_named() -> None:
    layout = BatchLayout.from_numbers([0], 1, LATENT)
    with pytest.raises(KeyError, match="No guest called style rides"):
        layout.guest_rows(object(), "style")


def test_a_site_knows_the_name_people_write_for_its_block() -> None:
    site = AttentionSite("cross", "output", 1, 3)
    assert site.block == "output.1" and str(site) == "cross output.1[3]"
    assert AttentionSite("self", "middle", 0).block == "middle.0"
