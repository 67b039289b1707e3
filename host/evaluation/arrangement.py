"""Which picture of a list stands in which row and column of a grid, and which scores are its own."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ...metrics.scores import Scores, fingerprint
from .figures import shown_alike

Order = Literal["row by row", "column by column"]
ORDERS: tuple[Order, ...] = get_args(Order)


@dataclass(frozen=True)
class Arrangement:
    """How many rows and columns there are, and in which order pictures fill them."""

    rows: int
    columns: int
    order: Order

    def place(self, number: int) -> tuple[int, int]:
        """Row and column of a picture, counted from 0."""
        if self.order == "row by row":
            return divmod(number, self.columns)
        column, row = divmod(number, self.rows)
        return row, column


def arrange(batches: Sequence[int], rows: int, columns: int, order: Order) -> Arrangement:
    """Rows and columns for batches of so many pictures, given so many row and column captions; 0: none.

    Several batches of the same number, more than one, are rows each (or columns, by the order). Of other batches,
    captions say the shape; without captions the grid is about square. Raises ValueError where pictures and captions do
    not fit each other.
    """
    count = sum(batches)
    _check_counts(count, rows, columns)
    lines = _lines(batches, order)
    if rows or columns:
        shape = rows or count // columns, columns or count // rows
        if lines is not None and shape != lines and 1 not in shape:  # of one line, each caption has its picture
            raise ValueError(_other_lines(batches, rows, columns, order))
        return Arrangement(*shape, order)
    if lines is not None:
        return Arrangement(*lines, order)
    wide = math.ceil(math.sqrt(count))
    return Arrangement(math.ceil(count / wide), wide, order)


def pictures_of(batches: Sequence[Tensor]) -> list[Tensor]:
    """All pictures of the batches, (height, width, 3 or 4) each. Raises ValueError for what is no picture."""
    for batch in batches:
        if batch.ndim != 4 or 0 in batch.shape or batch.shape[-1] not in (3, 4):
            raise ValueError(
                f"images holds something of shape {tuple(batch.shape)}, which is no picture; expected images of red, "
                "green and blue, e.g. from VAE Decode."
            )
        if not torch.isfinite(batch).all():
            raise ValueError("images holds pixels that are not numbers (NaN or infinite). Check the node that made it.")
    return [picture for batch in batches for picture in batch]


def notes_for(pictures: Sequence[Tensor], scores: Sequence[Scores]) -> tuple[tuple[tuple[str, ...], ...], str]:
    """The scores of each picture, a line for each measure, and a sentence on pictures that have none.

    Pictures are found again by their pixels, in any order. Of pictures that are the same to the pixel, the first has
    the first score.
    """
    if not scores:
        return (), ""
    found = _values_by_picture(scores)
    seen = Counter[str]()
    notes: list[tuple[str, ...]] = []
    for picture in pictures:
        name = fingerprint(picture)
        values = found.get(name, {})
        notes.append(tuple(f"{measure} {of[min(seen[name], len(of) - 1)]}" for measure, of in values.items()))
        seen[name] += 1
    return tuple(notes), _unscored(sum(not lines for lines in notes), len(pictures), bool(found))


def _values_by_picture(scores: Sequence[Scores]) -> dict[str, dict[str, list[str]]]:
    """Values as they are shown, by picture and measure, in the order of the rows."""
    columns: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for one in scores:
        for measure in one.measures:
            columns[measure.name] += zip(one.pictures, measure.values, strict=bool(one.pictures))
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name, column in columns.items():
        for (picture, _), value in zip(column, shown_alike([value for _, value in column]), strict=True):
            found[picture][name].append(value)
    return found


def _unscored(without: int, count: int, known: bool) -> str:
    if not known:
        return "These scores do not say which picture each is of, so none is shown."
    if without == count:
        return "None of these pictures is in the scores. Connect the pictures that were scored, unchanged."
    return f"{without} of {count} pictures {'has' if without == 1 else 'have'} no score." if without else ""


def _lines(batches: Sequence[int], order: Order) -> tuple[int, int] | None:
    """Rows and columns of a grid whose every row (or column, by the order) is a batch; None of other batches."""
    if len(batches) < 2 or len(set(batches)) > 1 or batches[0] < 2:
        return None
    lists, each = len(batches), batches[0]
    return (lists, each) if order == "row by row" else (each, lists)


def _other_lines(batches: Sequence[int], rows: int, columns: int, order: Order) -> str:
    """What is wrong where the captions are not those of batches as rows (or columns, by the order)."""
    other: Order = "column by column" if order == "row by row" else "row by row"
    lines, turned = _lines(batches, order), _lines(batches, other)
    assert lines is not None and turned is not None
    line = "row" if order == "row by row" else "column"
    (what, found, needed) = next(
        of for of in (("column", columns, lines[1]), ("row", rows, lines[0])) if of[1] not in (0, of[2])
    )
    fits = all(found in (0, needed) for found, needed in zip((rows, columns), turned, strict=True))
    advice = f"Choose '{other}', or write" if fits else "Write"
    return (
        f"Each batch is a {line} of {batches[0]}, {len(batches)} in all, but there {_are(found, f'{what} caption')}. "
        f"{advice} {needed} {what} captions or none."
    )


def _check_counts(count: int, rows: int, columns: int) -> None:
    if count == 0:
        raise ValueError("There is no picture for the grid. Connect images.")
    if rows and columns and count != rows * columns:
        raise ValueError(
            f"There {_are(count, 'picture')} for {rows} x {columns} captions, which need {rows * columns}. Write one "
            "caption for each row and one for each column, or leave one of the two fields empty."
        )
    for captions, what in ((rows, "row"), (columns, "column")):
        if captions and count % captions:
            raise ValueError(
                f"{count} pictures cannot be divided into {captions} {what}s of the same length. Write one caption for "
                f"each {what}, or none."
            )


def _are(count: int, what: str) -> str:
    return f"is 1 {what}" if count == 1 else f"are {count} {what}s"
