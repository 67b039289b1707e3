"""Pictures in rows and columns with captions, and scores under them: the grid people know as an XY plot."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import comfy.model_management
import comfy.utils
from PIL import Image, ImageDraw
from torch import Tensor

from ..pictures import image_of
from .arrangement import Arrangement
from .drawing import INKS, Look, fit_text, height_of, write
from .fonts import Typeface, typeface_for

MARGIN, GAP = 16, 8  # pixels
MOST_PIXELS = 2**24
"""Of a whole grid: 200 MB as an IMAGE."""
LONGEST_SIDE = 16384
"""Of a whole grid; browsers show no more."""
SMALLEST_CELL = 16
CAPTION_LINES, ROW_LINES = 3, 6
"""How many lines a caption takes at most, above a column and beside a row."""
READABLE = 40
"""Of a grid's width, a letter is one such part: 10 pixels where a node shows the grid 400 wide."""


@dataclass(frozen=True)
class Words:
    """All that is written on a grid."""

    rows: Sequence[str] = ()
    """One caption a row; none: no captions."""
    columns: Sequence[str] = ()
    title: str = ""
    notes: Sequence[Sequence[str]] = ()
    """For each picture the lines under it."""

    @cached_property
    def typeface(self) -> Typeface:
        return typeface_for([*self.rows, *self.columns, self.title, *(line for lines in self.notes for line in lines)])

    @property
    def note_lines(self) -> int:
        return max(map(len, self.notes), default=0)


@dataclass(frozen=True)
class Layout:
    """Where everything on a grid stands, in pixels."""

    rows: int
    columns: int
    cell: tuple[int, int]
    """Width and height of a picture's place."""
    words: Words

    @cached_property
    def font(self) -> int:
        """Large enough to be read on a node, as far as the cells have room for it."""
        long = max(self.cell)
        return max(10, round(min(max(self.columns * self.cell[0] / READABLE, long / 14), long / 8)))

    @cached_property
    def title(self) -> list[str]:
        return fit_text(self.words.title, self.words.typeface, self.title_font, self.size_of_cells[0], 2)

    @property
    def title_font(self) -> int:
        return round(self.font * 1.25)

    @cached_property
    def row_captions(self) -> list[list[str]]:
        most = max(1, min(ROW_LINES, int(self.cell[1] / height_of(1, self.font))))
        return [self._fitted(caption, self.cell[0], most) for caption in self.words.rows]

    @cached_property
    def column_captions(self) -> list[list[str]]:
        return [self._fitted(caption, self.cell[0], CAPTION_LINES) for caption in self.words.columns]

    @cached_property
    def left(self) -> int:
        """Where the first column begins, right of the row captions."""
        length = self.words.typeface.font(self.font).getlength
        widest = max((length(line) for lines in self.row_captions for line in lines), default=0)
        return MARGIN + (math.ceil(widest) + 2 * GAP if widest else 0)

    @cached_property
    def top(self) -> int:
        """Where the first row begins, below title and column captions."""
        title = height_of(len(self.title), self.title_font) + 2 * GAP if self.title else 0
        return MARGIN + title + self.caption_height

    @cached_property
    def caption_height(self) -> int:
        lines = max(map(len, self.column_captions), default=0)
        return height_of(lines, self.font) + GAP if lines else 0

    @property
    def row_height(self) -> int:
        notes = self.words.note_lines
        return self.cell[1] + (height_of(notes, self.font) + GAP // 2 if notes else 0) + GAP

    @property
    def size_of_cells(self) -> tuple[int, int]:
        return self.columns * (self.cell[0] + GAP) - GAP, self.rows * self.row_height - GAP

    @property
    def size(self) -> tuple[int, int]:
        """Of the whole grid."""
        width, height = self.size_of_cells
        return self.left + width + MARGIN, self.top + height + MARGIN

    def place(self, row: int, column: int) -> tuple[int, int]:
        """The left upper corner of a picture's place."""
        return self.left + column * (self.cell[0] + GAP), self.top + row * self.row_height

    def note(self, number: int) -> list[str]:
        """The lines under a picture."""
        lines = self.words.notes[number] if self.words.notes else ()
        return [fitted for line in lines for fitted in self._fitted(line, self.cell[0], 1)]

    def _fitted(self, caption: str, width: float, most_lines: int) -> list[str]:
        return fit_text(caption, self.words.typeface, self.font, width, most_lines)


def lay_out(arrangement: Arrangement, pictures: Sequence[Tensor], long_side: int, words: Words) -> Layout:
    """Places for pictures (height, width, channels), whose long sides become `long_side`.

    All places are alike; they take the shape of the widest and of the highest picture. Where the grid would pass
    MOST_PIXELS or LONGEST_SIDE, its pictures are smaller. Raises ValueError for more than can be shown at all.
    """
    sizes = {(picture.shape[1], picture.shape[0]) for picture in pictures}
    layout = Layout(arrangement.rows, arrangement.columns, _cell(sizes, long_side), words)
    while not _sane(layout.size) and long_side > SMALLEST_CELL:
        long_side = max(SMALLEST_CELL, int(long_side * 0.95))
        layout = replace(layout, cell=_cell(sizes, long_side))
    if not _sane(layout.size):
        raise ValueError(
            f"{len(pictures)} pictures in {arrangement.rows} rows and {arrangement.columns} columns do not fit into "
            f"one grid of at most {LONGEST_SIDE} pixels a side. Make several grids."
        )
    return layout


def draw_grid(pictures: Sequence[Tensor], arrangement: Arrangement, layout: Layout, look: Look) -> Image.Image:
    """Pictures (height, width, 3 or 4), each at its place; of four channels the last is opacity."""
    ink, words = INKS[look], layout.words
    image = Image.new("RGB", layout.size, ink.paper)
    draw = ImageDraw.Draw(image)
    write(draw, (layout.left, MARGIN), layout.title, words.typeface, layout.title_font, ink.text)
    _write_captions(draw, layout, ink.text)
    bar = comfy.utils.ProgressBar(len(pictures))
    for number, picture in enumerate(pictures):
        comfy.model_management.throw_exception_if_processing_interrupted()
        left, top = layout.place(*arrangement.place(number))
        _paste(image, image_of(picture), (left, top), layout.cell)
        under = (left + layout.cell[0] / 2, top + layout.cell[1] + GAP // 2)
        write(draw, under, layout.note(number), words.typeface, layout.font, ink.pale, "middle")
        bar.update(1)
    return image


def report(layout: Layout, long_side: int) -> str:
    """What the grid is, and what is not as it was asked for."""
    width, height = layout.size
    rows, columns = _counted(layout.rows, "row"), _counted(layout.columns, "column")
    lines = [f"{rows} and {columns}, {width} x {height} pixels."]
    if max(layout.cell) < long_side:
        lines.append(
            f"Its pictures are {max(layout.cell)} pixels large, not {long_side}: the whole grid would have been too "
            "large to show."
        )
    return " ".join([*lines, *filter(None, [layout.words.typeface.warning()])])


def _write_captions(draw: ImageDraw.ImageDraw, layout: Layout, ink: str) -> None:
    typeface = layout.words.typeface
    for column, lines in enumerate(layout.column_captions):
        left, top = layout.place(0, column)
        top -= height_of(len(lines), layout.font) + GAP  # the last lines of all captions stand side by side
        write(draw, (left + layout.cell[0] / 2, top), lines, typeface, layout.font, ink, "middle")
    for row, lines in enumerate(layout.row_captions):
        left, top = layout.place(row, 0)
        middle = top + (layout.cell[1] - height_of(len(lines), layout.font)) / 2
        write(draw, (left - 2 * GAP, middle), lines, typeface, layout.font, ink, "right")


def _paste(image: Image.Image, picture: Image.Image, place: tuple[int, int], cell: tuple[int, int]) -> None:
    """The whole picture in the middle of its place."""
    width, height = _fitting(picture.size, cell)
    picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    corner = (place[0] + (cell[0] - width) // 2, place[1] + (cell[1] - height) // 2)
    image.paste(picture, corner, picture.getchannel("A") if picture.mode == "RGBA" else None)


def _counted(count: int, what: str) -> str:
    return f"1 {what}" if count == 1 else f"{count} {what}s"


def _cell(sizes: Collection[tuple[int, int]], long_side: int) -> tuple[int, int]:
    fitted = [_fitting(size, (long_side, long_side)) for size in sizes]
    return max(width for width, _ in fitted), max(height for _, height in fitted)


def _fitting(size: tuple[int, int], room: tuple[int, int]) -> tuple[int, int]:
    """The largest size of this shape that fits, at least a pixel wide and high."""
    factor = min(room[0] / size[0], room[1] / size[1])
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _sane(size: tuple[int, int]) -> bool:
    return size[0] * size[1] <= MOST_PIXELS and max(size) <= LONGEST_SIDE
