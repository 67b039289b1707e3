"""Pictures side by side, each with its name under it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from .run import Shot

SIDE, MARGIN, CAPTION = 256, 16, 28  # pixels


def contact_sheet(shots: Sequence[Shot], path: Path) -> Path:
    """Saves one row of pictures with their names and returns where."""
    sheet = Image.new("RGB", (len(shots) * (SIDE + MARGIN) + MARGIN, SIDE + CAPTION + 2 * MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=15)
    for place, shot in enumerate(shots):
        left = MARGIN + place * (SIDE + MARGIN)
        with Image.open(shot.picture) as picture:
            sheet.paste(picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS), (left, MARGIN))
        draw.text((left, SIDE + MARGIN + 8), shot.name, fill="black", font=font)
    sheet.save(path)
    return path
