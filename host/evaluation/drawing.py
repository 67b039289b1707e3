"""What charts, grids and contact sheets draw with: ink for light and dark, and text fitted to its place."""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from PIL import ImageDraw

from .fonts import Typeface

Look = Literal["light", "dark"]
LOOKS: tuple[Look, ...] = get_args(Look)
Side = Literal["left", "middle", "right"]
LINE = 1.3
"""From one line of text to the next, in font sizes."""
MOST_CHARACTERS = 2000
"""Of a text that is fitted; more would not be read."""
SHORTENED = "..."
CLOSING = "，。、；：！？）」』】》”’,.;:!?)]}"
"""No line begins with these."""


@dataclass(frozen=True)
class Ink:
    """The colours of one look."""

    paper: str
    text: str
    pale: str
    """For what is read second: scores, axes, protocols."""
    rule: str
    """Thin lines, and the places of pictures that are not there."""
    bar: str


INKS: dict[Look, Ink] = {
    "light": Ink(paper="#ffffff", text="#1c1c1c", pale="#5f5f5f", rule="#d4d4d4", bar="#4c86c6"),
    "dark": Ink(paper="#1e1e1e", text="#f0f0f0", pale="#b0b0b0", rule="#4a4a4a", bar="#5b9bd5"),
}


def fit_text(text: str, typeface: Typeface, size: int, width: float, most_lines: int) -> list[str]:
    """The text in lines no wider than `width` pixels; what does not fit into `most_lines` is shortened with "...".

    Lines break at spaces and beside Chinese and Japanese characters; a word wider than the line is divided.
    """
    rest = typeface.drawable(text[:MOST_CHARACTERS])
    lines: list[str] = []
    while rest:
        count = _fitting(rest, typeface, size, width)
        if count == len(rest):
            return [*lines, rest]
        if len(lines) + 1 == most_lines:
            room = width - typeface.font(size).getlength(SHORTENED)
            return [*lines, rest[: _fitting(rest, typeface, size, room)].rstrip() + SHORTENED]
        cut = _break_at(rest, count)
        lines.append(rest[:cut].rstrip())
        rest = rest[cut:].lstrip()
    return lines


def height_of(lines: int, size: int) -> int:
    """Pixels that so many lines take."""
    return round(lines * size * LINE)


def write(
    draw: ImageDraw.ImageDraw,
    place: tuple[float, float],
    lines: Sequence[str],
    typeface: Typeface,
    size: int,
    ink: str,
    side: Side = "left",
) -> None:
    """Writes lines below each other, the first one's top at `place`, which is their left end, middle or right end."""
    left, top = place
    ascent = typeface.font(size).getmetrics()[0]
    for number, line in enumerate(lines):
        baseline = top + (number + 0.5) * size * LINE + ascent / 2 - size * 0.12
        draw.text((left, baseline), line, fill=ink, font=typeface.font(size), anchor=f"{side[0]}s")  # "s": the baseline


def _fitting(text: str, typeface: Typeface, size: int, width: float) -> int:
    """How many characters of the text fit; at least one."""
    font = typeface.font(size)
    return max(1, bisect_right(range(1, len(text) + 1), width, key=lambda count: font.getlength(text[:count])))


def _break_at(text: str, count: int) -> int:
    """Where the text breaks best at `count` characters or before."""
    breaks = (at for at in range(count, 0, -1) if _breaks(text[at - 1], text[at]))
    return next(breaks, count)


def _breaks(before: str, after: str) -> bool:
    wide = any(unicodedata.east_asian_width(character) in "WF" for character in (before, after))
    return before == " " or after == " " or (wide and after not in CLOSING)
