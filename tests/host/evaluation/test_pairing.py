"""Which pictures of several sources belong together, and what is said where their names do not agree."""

from __future__ import annotations

from pathlib import Path

import pytest

from semblance.host.evaluation.folders import PictureFolder, open_folder
from semblance.host.evaluation.pairing import check_pairs, names_report, row_names
from semblance.host.evaluation.sources import PictureBatch
from semblance.tests.support.graphs import picture


def folder(place: Path, name: str, *files: str) -> PictureFolder:
    """Files that have names alone: pairing reads none."""
    path = place / "input" / name
    path.mkdir()
    for file in files:
        (path / file).touch()
    return open_folder(f"input/{name}")


def batch(name: str, images: int) -> PictureBatch:
    return PictureBatch(name, picture(images=images))


def test_sources_pair_up_or_say_what_is_expected_of_batches_and_of_folders(place: Path) -> None:
    one, three, four = batch("a", 1), batch("b", 3), batch("c", 4)
    check_pairs(one, three, one_for_all=True, measure="LPIPS")
    check_pairs(three, three, measure="CFSD")
    with pytest.raises(
        ValueError, match="LPIPS pairs the pictures in their order, .*or one against many; found 3 in b"
    ):
        check_pairs(three, four, one_for_all=True, measure="LPIPS")
    with pytest.raises(
        ValueError,
        match="so it needs as many of each; found 1 in a, 3 in b, 3 in b. Give each picture its partner at the same "
        "place, once more where it has several",
    ):
        check_pairs(one, three, three, measure="ArtFID")
    first, second = folder(place, "first", "a.png", "b.png"), folder(place, "second", "a.png")
    with pytest.raises(
        ValueError,
        match="CFSD pairs the pictures in the order of their names, so .*; found 2 in input/first, 1 in input/second. "
        "Give each picture its partner under the same name, a copy of it where it has several",
    ):
        check_pairs(first, second, measure="CFSD")


def test_folders_whose_names_do_not_agree_say_so_in_the_report_and_in_each_row(place: Path) -> None:
    first = folder(place, "first", "a.png", "b.png", "c.png")
    second = folder(place, "second", "a.jpg", "c.png", "d.png")
    assert names_report(first, second) == "2 of 3 pairs have different names, the first: b.png with c.png."
    assert row_names((first, second), second) == [
        "a.jpg",
        "b.png with c.png",
        "c.png with d.png",
    ]
    third = folder(place, "third", "a.png", "b.png", "x.png")
    assert (
        names_report(first, first, third)
        == "1 of 3 triples has different names, the first: c.png with c.png with x.png."
    )


def test_the_same_names_with_other_endings_one_for_all_and_batches_are_no_different_names(place: Path) -> None:
    first, second = folder(place, "first", "a.png", "b.png"), folder(place, "second", "a.jpg", "b.webp")
    lone = folder(place, "lone", "original.png")
    assert names_report(first, second) == names_report(first, lone) == names_report(first, batch("b", 2)) == ""
    assert row_names((lone, first), first) == row_names((first, batch("b", 2)), first) == ["a.png", "b.png"]
    assert row_names((first, batch("b", 2)), batch("b", 2)) == ["b 0", "b 1"]
    assert "1 of 1 pairs has different names" in names_report(lone, folder(place, "other", "result.png"))
