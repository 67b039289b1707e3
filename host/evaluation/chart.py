"""A bar for each of several scores, with the interval of its mean: one panel a measure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from .drawing import INKS, Ink, Look, Side, fit_text, height_of, write
from .figures import estimated, interval_of, round_ticks, shown
from .fonts import Typeface, typeface_for
from .table import Table

WIDTH, MARGIN = 1000, 24  # pixels
FONT, SMALL, LARGE = 24, 20, 28
"""Sizes of text; on a node 400 pixels wide they are two fifths of that."""
LABEL_SHARE = 0.32
"""How much of the width labels take at most."""
MOST_BARS = 60
"""In one panel; more would not be told apart."""
MANY = 12
"""From here on a bar's label has one line, not two."""


@dataclass(frozen=True)
class Bar:
    """The mean of one measure, and what it lies between."""

    label: str
    mean: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Panel:
    """The bars of one measure."""

    title: str
    note: str
    """E.g. "higher is better"."""
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class Axis:
    """The line of numbers below the bars: from `low` to `high`, at pixels `left` to `right`. It holds 0."""

    low: float
    high: float
    left: float
    right: float

    def place(self, value: float) -> float:
        """The pixel of a value."""
        return self.left + (value - self.low) / (self.high - self.low) * (self.right - self.left)

    def ticks(self) -> list[float]:
        """Round numbers on the axis, 0 among them."""
        return round_ticks(self.low, self.high)


def panels_of(table: Table) -> list[Panel]:
    """A panel for each measure, with a bar for each label that has it."""
    return [
        Panel(
            heading.title,
            heading.better,
            tuple(
                Bar(label, measure.mean, interval_of(measure))
                for label, scores in zip(table.labels, table.scores, strict=True)
                if (measure := heading.of(scores)) is not None
            ),
        )
        for heading in table.headings
    ]


def draw_chart(panels: Sequence[Panel], look: Look) -> tuple[Image.Image, str]:
    """The panels below each other, and a sentence on what could not be drawn, or an empty one."""
    typeface = typeface_for(text for panel in panels for text in (panel.title, *(bar.label for bar in panel.bars)))
    heights = [_panel_height(panel) for panel in panels]
    image = Image.new("RGB", (WIDTH, sum(heights) + MARGIN * (len(panels) + 1)), INKS[look].paper)
    sheet = _Sheet(ImageDraw.Draw(image), typeface, INKS[look], panels)
    top = MARGIN
    for panel, height in zip(panels, heights, strict=True):
        sheet.draw_panel(panel, top)
        top += height + MARGIN
    return image, typeface.warning()


def axis_for(bars: Sequence[Bar], left: float, right: float) -> Axis:
    """An axis that holds 0, every mean and every interval."""
    ends = [end for bar in bars for end in (bar.mean, *(bar.interval or ())) if math.isfinite(end)]
    low, high = min(0.0, *ends, 0.0), max(0.0, *ends, 0.0)
    return Axis(low, high if high > low else low + 1.0, left, right)


def _panel_height(panel: Panel) -> int:
    count = min(len(panel.bars), MOST_BARS)
    more = height_of(1, SMALL) if len(panel.bars) > MOST_BARS else 0
    return height_of(1, LARGE) + MARGIN // 2 + count * _row_height(panel) + height_of(1, SMALL) + 8 + more


def _row_height(panel: Panel) -> int:
    return height_of(1 if len(panel.bars) > MANY else 2, FONT) + 6


class _Sheet:
    """Where the panels are drawn: labels to the left, values to the right, and the bars in what is left between."""

    def __init__(self, draw: ImageDraw.ImageDraw, typeface: Typeface, ink: Ink, panels: Sequence[Panel]) -> None:
        self.draw, self.typeface, self.ink = draw, typeface, ink
        labels = [line for panel in panels for bar in panel.bars[:MOST_BARS] for line in self.label_lines(bar, panel)]
        self.left = MARGIN + 16 + max(map(typeface.font(FONT).getlength, labels), default=0)
        values = [text for panel in panels for text in texts_of(panel.bars[:MOST_BARS])]
        self.right = WIDTH - MARGIN - 16 - max(map(typeface.font(FONT).getlength, values))

    def label_lines(self, bar: Bar, panel: Panel) -> list[str]:
        most = 1 if len(panel.bars) > MANY else 2
        return fit_text(bar.label, self.typeface, FONT, WIDTH * LABEL_SHARE, most)

    def write(self, place: tuple[float, float], text: str, size: int, ink: str, side: Side = "left") -> None:
        write(self.draw, place, [text], self.typeface, size, ink, side)

    def draw_panel(self, panel: Panel, top: int) -> None:
        bars, row = panel.bars[:MOST_BARS], _row_height(panel)
        title = "".join(fit_text(panel.title, self.typeface, LARGE, WIDTH * 0.65, 1))
        self.write((MARGIN, top), title, LARGE, self.ink.text)
        note_top = top + height_of(1, LARGE) - height_of(1, SMALL) - 2
        self.write((WIDTH - MARGIN, note_top), panel.note, SMALL, self.ink.pale, "right")
        top += height_of(1, LARGE) + MARGIN // 2
        bottom = top + len(bars) * row
        axis = axis_for(bars, self.left, self.right)
        self.draw_axis(axis, top, bottom)
        half = height_of(1, FONT) / 2
        for number, (bar, text) in enumerate(zip(bars, texts_of(bars), strict=True)):
            middle = top + (number + 0.5) * row
            lines = self.label_lines(bar, panel)
            write(self.draw, (MARGIN, middle - half * len(lines)), lines, self.typeface, FONT, self.ink.text)
            self.write((WIDTH - MARGIN, middle - half), text, FONT, self.ink.text, "right")
            self.draw_bar(bar, axis, middle, row)
        if len(panel.bars) > MOST_BARS:
            more = f"and {len(panel.bars) - MOST_BARS} more, in the table"
            self.write((MARGIN, bottom + 8 + height_of(1, SMALL)), more, SMALL, self.ink.pale)

    def draw_axis(self, axis: Axis, top: int, bottom: int) -> None:
        taken = -math.inf
        for tick in axis.ticks():
            at = axis.place(tick)
            self.draw.line((at, top, at, bottom), fill=self.ink.pale if tick == 0 else self.ink.rule, width=2)
            half = self.typeface.font(SMALL).getlength(shown(tick)) / 2
            if at - half > taken:  # numbers do not run into each other
                self.write((at, bottom + 4), shown(tick), SMALL, self.ink.pale, "middle")
                taken = at + half + 8

    def draw_bar(self, bar: Bar, axis: Axis, middle: float, row: int) -> None:
        if not math.isfinite(bar.mean):
            return
        start, end = sorted((axis.place(0.0), axis.place(bar.mean)))
        self.draw.rectangle((start, middle - row * 0.3, max(end, start + 1), middle + row * 0.3), fill=self.ink.bar)
        if bar.interval is not None:
            low, high = map(axis.place, bar.interval)
            self.draw.line((low, middle, high, middle), fill=self.ink.text, width=3)
            for at in (low, high):
                self.draw.line((at, middle - row * 0.14, at, middle + row * 0.14), fill=self.ink.text, width=3)


def texts_of(bars: Sequence[Bar]) -> list[str]:
    """The numbers of a panel as they stand beside its bars."""
    return estimated([bar.mean for bar in bars], [bar.interval for bar in bars])
