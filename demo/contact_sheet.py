"""Pictures side by side, each with its name and its figures under it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from .run import Shot

SIDE, MARGIN, LINE = 256, 16, 19  # pixels
LETTERS = 38  # of a note that fit under a picture
INK, PALE = "#222222", "#666666"


def contact_sheet(rows: Sequence[Sequence[Shot]], path: Path) -> Path:
    """Saves rows of pictures with their names and notes and returns where."""
    lines = 1 + max(len(wrapped(shot.note).splitlines()) for row in rows for shot in row)
    height = SIDE + lines * LINE + MARGIN + 8
    sheet = Image.new("RGB", (max(map(len, rows)) * (SIDE + MARGIN) + MARGIN, len(rows) * height + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    name_font, note_font = ImageFont.load_default(size=15), ImageFont.load_default(size=13)
    for number, row in enumerate(rows):
        top = MARGIN + number * height
        for place, shot in enumerate(row):
            left = MARGIN + place * (SIDE + MARGIN)
            with Image.open(shot.picture) as picture:
                sheet.paste(picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS), (left, top))
            draw.text((left, top + SIDE + 6), shot.name, fill=INK, font=name_font)
            draw.multiline_text((left, top + SIDE + 8 + LINE), wrapped(shot.note), fill=PALE, font=note_font, spacing=4)
    sheet.save(path)
    return path


def wrapped(note: str) -> str:
    """Its lines, none longer than LETTERS."""
    return "\n".join(fill(line, LETTERS) for line in note.splitlines())
