"""The losses of a tuning as a picture, and as ComfyUI's own charts take them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

from ..evaluation.drawing import INKS, Look, height_of, write
from ..evaluation.figures import round_ticks, shown
from ..evaluation.fonts import typeface_for

WIDTH, HEIGHT, MARGIN = 800, 480, 24  # pixels
LEFT, BOTTOM = 84, 48
"""Room for the numbers of the axes."""
FONT, LARGE = 20, 26
SMOOTHING = 0.06
"""The part of all steps that the smooth line averages over."""


def loss_map(losses: Sequence[float]) -> dict[str, list[float]]:
    """A LOSS_MAP. Plot Loss Graph divides by the difference of its ends, so a flat one gets one in the last digit."""
    listed = list(losses)
    return {"loss": listed if len(set(listed)) > 1 else [*listed, math.nextafter(listed[-1], math.inf)]}


def smoothed(losses: Sequence[float]) -> list[float]:
    """The averages of as many steps as `reach_of` says, from the first such many to the last."""
    reach = reach_of(losses)
    return [sum(losses[end - reach : end]) / reach for end in range(reach, len(losses) + 1)]


def reach_of(losses: Sequence[float]) -> int:
    """Over how many steps the smooth line averages."""
    return max(1, round(len(losses) * SMOOTHING))


def draw_losses(losses: Sequence[float], first: int = 1, look: Look = "light") -> Image.Image:
    """Each step's loss as a dot, and their running average as a line; `first` is the number of the first step."""
    ink = INKS[look]
    image = Image.new("RGB", (WIDTH, HEIGHT), ink.paper)
    draw, typeface = ImageDraw.Draw(image), typeface_for(["Loss step"])
    top = MARGIN + height_of(1, LARGE)
    right, bottom = WIDTH - MARGIN, HEIGHT - BOTTOM
    write(draw, (MARGIN, MARGIN / 2), ["Loss"], typeface, LARGE, ink.text)
    mean, reach = smoothed(losses), reach_of(losses)
    note = f"each step, and the average of {reach}: {shown(mean[-1])} at the end"
    write(draw, (right, MARGIN / 2 + 4), [note], typeface, FONT, ink.pale, "right")
    low, high = min(losses), max(losses)
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    last = max(len(losses) - 1, 1)

    def place(index: int, value: float) -> tuple[float, float]:
        return LEFT + index / last * (right - LEFT), bottom - (value - low) / (high - low) * (bottom - top)

    for tick in round_ticks(low, high):
        y = place(0, tick)[1]
        draw.line((LEFT, y, right, y), fill=ink.rule, width=1)
        write(draw, (LEFT - 8, y - height_of(1, FONT) / 2), [shown(tick)], typeface, FONT, ink.pale, "right")
    for tick in round_ticks(first, first + last):
        if float(tick).is_integer():
            x = place(round(tick) - first, low)[0]
            draw.line((x, bottom, x, bottom + 6), fill=ink.pale, width=1)
            write(draw, (x, bottom + 8), [f"{tick:g}"], typeface, FONT, ink.pale, "middle")
    for index, loss in enumerate(losses):
        x, y = place(index, loss)
        draw.ellipse((x - 1.5, y - 1.5, x + 1.5, y + 1.5), fill=ink.pale)
    if len(mean) > 1:
        draw.line(
            [place(index, value) for index, value in enumerate(mean, reach - 1)], fill=ink.bar, width=4, joint="curve"
        )
    return image
