"""Where pictures, captions and scores stand on a grid."""

from __future__ import annotations

import numpy
import pytest
import torch
from torch import Tensor

from semblance.host.evaluation.arrangement import Arrangement, Order, arrange, notes_for, pictures_of
from semblance.host.evaluation.drawing import LOOKS, Look
from semblance.host.evaluation.grid import LONGEST_SIDE, MOST_PIXELS, Words, draw_grid, lay_out, report
from semblance.metrics.scores import Measure, Scores, fingerprint


def plain(count: int, height: int = 64, width: int = 64) -> list[Tensor]:
    """Pictures of one colour each, all different."""
    levels = (torch.arange(count * 3).reshape(count, 3) * 37 % 256) / 255
    return [colour.expand(height, width, 3) for colour in levels]


def scored(pictures: list[Tensor], values: list[float], name: str = "text") -> Scores:
    rows = tuple(f"prompt {number}" for number in range(len(pictures)))
    return Scores(rows, (Measure(name, tuple(values), True),), "p", tuple(map(fingerprint, pictures)))


def pixels(image: object) -> numpy.ndarray:
    return numpy.asarray(image).astype(int)


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("order", ["row by row", "column by column"])
def test_every_picture_stands_in_its_own_place(look: Look, order: str) -> None:
    pictures = plain(6)
    arrangement = arrange([6], 2, 3, order)  # pyright: ignore[reportArgumentType]
    words = Words(["above", "below"], ["left", "middle", "a long caption that takes lines of its own"], "title")
    layout = lay_out(arrangement, pictures, 80, words)
    drawn = pixels(draw_grid(pictures, arrangement, layout, look))
    for number, picture in enumerate(pictures):
        row, column = divmod(number, 3) if order == "row by row" else divmod(number, 2)[::-1]
        left, top = layout.place(row, column)
        inside = drawn[top : top + 80, left : left + 80]
        assert (inside == (picture[0, 0] * 255).round().int().numpy()).all()


@pytest.mark.parametrize(
    ("order", "captions", "sentence"),
    [
        (
            "row by row",
            (0, 5),
            "Each batch is a row of 3, 5 in all, but there are 5 column captions. Choose 'column by column', or write "
            "3 column captions or none.",
        ),
        ("row by row", (3, 5), "there are 5 column captions. Choose 'column by column', or write 3 column captions"),
        ("row by row", (3, 0), "there are 3 row captions. Choose 'column by column', or write 5 row captions or none"),
        ("column by column", (5, 0), "Each batch is a column of 3, 5 in all, .* 5 row captions. Choose 'row by row'"),
    ],
)
def test_captions_of_other_lines_than_the_batches_are_refused(
    order: Order, captions: tuple[int, int], sentence: str
) -> None:
    """Fifteen pictures in a row of captions put the three of one strength under three strengths."""
    with pytest.raises(ValueError, match=sentence):
        arrange([3] * 5, *captions, order)
    with pytest.raises(ValueError, match="Each batch is a row of 4, 2 in all, but there are 2 column .*none.$"):
        arrange([4, 4], 4, 2, "row by row")


def test_captions_of_batches_as_lines_and_one_caption_for_each_picture_are_taken() -> None:
    for order, rows, columns in (("row by row", 5, 3), ("column by column", 3, 5)):
        for captions in ((rows, columns), (rows, 0), (0, columns)):
            assert arrange([3] * 5, *captions, order) == Arrangement(rows, columns, order)  # pyright: ignore[reportArgumentType]
    assert arrange([3] * 5, 0, 15, "row by row") == Arrangement(1, 15, "row by row")
    assert arrange([15], 0, 5, "row by row") == Arrangement(3, 5, "row by row")
    assert arrange([1] * 15, 0, 5, "row by row") == Arrangement(3, 5, "row by row")


def test_pictures_of_other_shapes_are_shown_whole_in_the_middle_of_their_place() -> None:
    pictures = [*plain(1, 50, 100), *plain(1, 100, 50)]
    arrangement = Arrangement(1, 2, "row by row")
    layout = lay_out(arrangement, pictures, 100, Words())
    drawn = pixels(draw_grid([pictures[0], 1 - pictures[1]], arrangement, layout, "dark"))
    assert layout.cell == (100, 100)
    left, top = layout.place(0, 0)
    assert (drawn[top + 25 : top + 75, left : left + 100] == drawn[top + 50, left + 50]).all()
    assert (drawn[top + 24, left + 50] == drawn[0, 0]).all()
    left, top = layout.place(0, 1)
    assert (drawn[top : top + 100, left + 25 : left + 75] == drawn[top + 50, left + 50]).all()
    assert (drawn[top + 50, left + 24] == drawn[0, 0]).all()


def test_a_transparent_picture_shows_the_paper() -> None:
    clear = torch.cat([torch.ones(64, 64, 3), torch.zeros(64, 64, 1)], dim=2)
    arrangement = Arrangement(1, 1, "row by row")
    layout = lay_out(arrangement, [clear], 64, Words())
    drawn = pixels(draw_grid([clear], arrangement, layout, "dark"))
    assert (drawn == drawn[0, 0]).all()


def test_captions_stay_out_of_the_pictures_and_inside_the_grid() -> None:
    pictures = [torch.zeros(64, 64, 3)] * 4
    long = "a caption that is much longer than any cell is wide and that goes on " * 9
    words = Words([long, long], [long, long], long, [[long]] * 4)
    arrangement = Arrangement(2, 2, "row by row")
    layout = lay_out(arrangement, pictures, 128, words)
    drawn = pixels(draw_grid(pictures, arrangement, layout, "light"))
    assert drawn.shape[:2] == layout.size[::-1]
    for row in range(2):
        for column in range(2):
            left, top = layout.place(row, column)
            assert (drawn[top : top + 128, left : left + 128] == 0).all()
            drawn[top : top + 128, left : left + 128] = 255
    for edge in (drawn[:6], drawn[-6:], drawn[:, :6], drawn[:, -6:]):
        assert (edge == 255).all()


def test_letters_are_readable_where_a_node_shows_the_grid() -> None:
    words = Words(["a"] * 4, ["b"] * 4)
    layout = lay_out(Arrangement(4, 4, "row by row"), plain(16), 512, words)
    assert layout.font * 400 / layout.size[0] > 8.5


def test_a_grid_beyond_bounds_is_made_smaller_and_says_so() -> None:
    pictures = plain(9)
    large = lay_out(Arrangement(3, 3, "row by row"), pictures, 4096, Words())
    assert large.size[0] * large.size[1] <= MOST_PIXELS and max(large.cell) > 1200
    assert f"{max(large.cell)} pixels large, not 4096" in report(large, 4096)
    long = lay_out(Arrangement(1, 300, "row by row"), plain(1) * 300, 256, Words())
    assert max(long.size) <= LONGEST_SIDE
    small = lay_out(Arrangement(3, 3, "row by row"), pictures, 64, Words())
    assert report(small, 64) == "3 rows and 3 columns, 240 x 240 pixels."


def test_more_pictures_than_any_grid_shows_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit into one grid of at most"):
        lay_out(Arrangement(1, 5000, "row by row"), plain(1) * 5000, 256, Words())


@pytest.mark.parametrize(
    ("batches", "rows", "columns", "expected"),
    [
        ([6], 2, 3, (2, 3)),
        ([6], 2, 0, (2, 3)),
        ([6], 0, 2, (3, 2)),
        ([3, 3], 0, 0, (2, 3)),
        ([1, 1, 1], 0, 0, (2, 2)),
        ([7], 0, 0, (3, 3)),
        ([1], 0, 0, (1, 1)),
    ],
)
def test_rows_and_columns_follow_from_captions_or_else_from_the_batches(
    batches: list[int], rows: int, columns: int, expected: tuple[int, int]
) -> None:
    found = arrange(batches, rows, columns, "row by row")
    assert (found.rows, found.columns) == expected
    across = arrange(batches, columns, rows, "column by column")
    assert (across.columns, across.rows) == expected or sum(batches) in (3, 7)


def test_pictures_that_do_not_fit_their_captions_are_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match="There are 7 pictures for 2 x 4 captions, which need 8"):
        arrange([7], 2, 4, "row by row")
    with pytest.raises(ValueError, match="7 pictures cannot be divided into 2 rows"):
        arrange([7], 2, 0, "row by row")
    with pytest.raises(ValueError, match="7 pictures cannot be divided into 3 columns"):
        arrange([7], 0, 3, "row by row")


def test_each_picture_finds_its_own_score_in_any_order() -> None:
    pictures = plain(3)
    backwards = scored(pictures[::-1], [0.3, 0.2, 0.1])
    notes, missing = notes_for(pictures, [backwards, scored(pictures[:1], [25.0], "style")])
    assert notes == (("text 0.100", "style 25.0"), ("text 0.200",), ("text 0.300",))
    assert missing == ""


def test_a_picture_without_a_score_gets_none_and_it_is_said() -> None:
    pictures = plain(3)
    assert notes_for(pictures, []) == ((), "")
    notes, missing = notes_for(pictures, [scored(pictures[1:], [0.2, 0.3])])
    assert notes[0] == () and missing == "1 of 3 pictures has no score."
    assert "None of these pictures is in the scores" in notes_for(plain(2), [scored(plain(2, 32), [1.0, 2.0])])[1]
    without = Scores(("a",), (Measure("FID", (1.0,), False),), "p")
    assert "do not say which picture each is of" in notes_for(pictures, [without])[1]


def test_pictures_that_are_the_same_to_the_pixel_take_their_scores_in_turn() -> None:
    one = plain(1) * 2
    assert notes_for(one, [scored(one, [0.1, 0.2])])[0] == (("text 0.100",), ("text 0.200",))
    assert notes_for(one * 2, [scored(one, [0.1, 0.2])])[0][3] == ("text 0.200",)


def test_what_is_no_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="not numbers"):
        pictures_of([torch.full((1, 8, 8, 3), torch.nan)])
    with pytest.raises(ValueError, match="no picture; expected images"):
        pictures_of([torch.zeros(1, 8, 8)])
    with pytest.raises(ValueError, match="no picture for the grid"):
        arrange([], 0, 0, "row by row")
    assert len(pictures_of([torch.zeros(2, 8, 8, 3), torch.zeros(1, 9, 7, 4)])) == 3
