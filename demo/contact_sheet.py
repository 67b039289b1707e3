"""Pictures side by side, each with its name and its figures under it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from .run import Shot

SIDE, MARGIN, LINE = 256, 16, 19  # pixels
INK, PALE = "#222222", "#666666"


def contact_sheet(rows: Sequence[Sequence[Shot]], path: Path) -> Path:
    """Saves rows of pictures with their names and notes and returns where."""
    lines = 1 + max(shot.note.count("\n") + 1 if shot.note else 0 for row in rows for shot in row)
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
            draw.multiline_text((left, top + SIDE + 8 + LINE), shot.note, fill=PALE, font=note_font, spacing=4)
    sheet.save(path)
    return path
