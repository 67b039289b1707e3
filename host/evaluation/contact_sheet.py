"""A contact sheet: many pictures on one, each with its number and its scores, those that were picked in a frame."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..pictures import image_of, tensor_of

LONG_SIDE = 256
"""Pixels of a picture's long side on the sheet."""
LARGEST = 3072
"""Pixels of a sheet's long side; with very many pictures each becomes smaller."""
SMALLEST_CELL = 96
GUTTER = 0.06
"""Free space around each picture, as a share of the cell's width; the frame lies in it."""
LINE = 0.14
"""Height of a line of text, as a share of the cell's width: readable where a node shows three cells side by side."""
# Its own ground, so that the sheet reads alike in light and dark themes.
GROUND, INK, FRAME = (30, 30, 34), (238, 238, 238), (255, 157, 0)


@dataclass(frozen=True)
class SheetLayout:
    """Where the pictures are on a sheet, row by row from the top left. Lengths in pixels."""

    count: int
    columns: int
    cell_width: int
    cell_height: int
    gutter: int
    picture: tuple[int, int]  # width, height
    line: int
    """Height of a line of text."""

    @classmethod
    def of(cls, count: int, width: int, height: int, lines: int) -> SheetLayout:
        """The layout for `count` pictures of one size with `lines` lines of text below each."""
        columns = math.ceil(math.sqrt(count))
        longest = max(SMALLEST_CELL, min(LONG_SIDE, LARGEST // columns))
        scale = longest / max(width, height)
        picture = max(1, round(width * scale)), max(1, round(height * scale))
        inner = max(picture[0], longest * 2 // 3)  # of a narrow picture: room for its text
        gutter, line = max(4, round(inner * GUTTER)), max(8, round(inner * LINE))
        return cls(count, columns, inner + 2 * gutter, picture[1] + 2 * gutter + lines * line, gutter, picture, line)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the sheet."""
        return self.columns * self.cell_width, math.ceil(self.count / self.columns) * self.cell_height

    def corner(self, place: int) -> tuple[int, int]:
        """The top left corner of a cell."""
        row, column = divmod(place, self.columns)
        return column * self.cell_width, row * self.cell_height

    def frame(self) -> tuple[int, int]:
        """How far a frame lies inside its cell, and how thick it is."""
        return self.gutter // 4, self.gutter // 2


def draw_sheet(
    images: Tensor, captions: Sequence[Sequence[str]], picked: Collection[int]
) -> tuple[Tensor, SheetLayout]:
    """The sheet of `images` (images, height, width, 3) as an IMAGE (1, height, width, 3), and its layout.

    `captions` holds the lines of text below each picture, as many below each; `picked` the places of those in a frame.
    """
    count, height, width = images.shape[:3]
    layout = SheetLayout.of(count, width, height, max(map(len, captions)))
    sheet = Image.new("RGB", layout.size, GROUND)
    draw = ImageDraw.Draw(sheet)
    for place, (image, lines) in enumerate(zip(images, captions, strict=True)):
        _draw_cell(sheet, draw, layout, place, image, lines)
        if place in picked:
            _draw_frame(draw, layout, place)
    return tensor_of(sheet), layout


def _draw_cell(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, layout: SheetLayout, place: int, image: Tensor, lines: Sequence[str]
) -> None:
    left, top = layout.corner(place)
    picture = image_of(image).resize(layout.picture, Image.Resampling.LANCZOS)
    middle = left + layout.cell_width // 2
    corner = middle - picture.width // 2, top + layout.gutter
    sheet.paste(picture, corner)
    _draw_number(draw, corner, layout.line, str(place))
    inner = layout.cell_width - 2 * layout.gutter
    for number, line in enumerate(lines):
        centre = top + layout.gutter + picture.height + (number + 0.5) * layout.line + layout.gutter // 4
        draw.text((middle, centre), line, INK, _font(draw, line, 0.8 * layout.line, inner), anchor="mm")


def _draw_number(draw: ImageDraw.ImageDraw, corner: tuple[int, int], line: int, number: str) -> None:
    """The number in the picture's corner, on ground of its own."""
    font = ImageFont.load_default(line)
    width = max(1.4 * line, draw.textlength(number, font) + 0.6 * line)
    box = (corner[0], corner[1], corner[0] + width, corner[1] + 1.4 * line)
    draw.rectangle(box, GROUND)
    draw.text(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), number, INK, font, anchor="mm")


def _draw_frame(draw: ImageDraw.ImageDraw, layout: SheetLayout, place: int) -> None:
    left, top = layout.corner(place)
    inset, thickness = layout.frame()
    box = (left + inset, top + inset, left + layout.cell_width - 1 - inset, top + layout.cell_height - 1 - inset)
    draw.rectangle(box, outline=FRAME, width=thickness)


def _font(draw: ImageDraw.ImageDraw, text: str, size: float, most: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font of `size`, or smaller where the text would be wider than `most`."""
    width = draw.textlength(text, ImageFont.load_default(size))
    return ImageFont.load_default(size if width <= most else size * most / width)
