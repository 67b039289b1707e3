"""What a model draws for captions of held-out combinations, beside the drawings, while it is trained."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..captions import full_captions
from ..world import draw, sample_scenes
from .loop import Plan
from .sheets import contact_sheet, save_picture


@torch.no_grad()
def show_samples(paint: Callable[[list[str]], Tensor], plan: Plan, name: str) -> dict[str, float]:
    """Writes drawings above what `paint` makes of their captions into NAME.png of the run; returns colour errors.

    `paint` takes captions and gives pictures (captions, 3, height, width) in 0..1.
    """
    scenes = sample_scenes(24, 5, "held_out")
    drawn = draw(scenes).pictures
    made = paint(full_captions(scenes)).cpu()
    rows = [part for s in (0, 12) for part in (drawn[s : s + 12], made[s : s + 12])]
    save_picture(contact_sheet(torch.cat(rows), 12), plan.folder / f"{name}.png")
    return {"mean_colour_error": (made.mean(dim=(2, 3)) - drawn.mean(dim=(2, 3))).abs().mean().item()}
