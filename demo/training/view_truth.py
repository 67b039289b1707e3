"""What a caption may tell of a view, and what it may not, as numbers and choices: the views' side of `encoders`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ..layouts import ARRANGEMENT_NAMES, TOLD, Layouts, Views
from ..shapes import SHAPES
from ..world import EDGES, PALETTE_NAMES, TEXTURES
from .answers import Answers
from .directions import texture_direction


def cell_numbers(layouts: Layouts) -> Tensor:
    """Each told place as a number 0 to 8: (pictures, 3)."""
    return 3 * (layouts.place[..., 0] + 1) + layouts.place[..., 1] + 1


def told_places(layouts: Layouts) -> Tensor:
    """Ones at the places that the caption tells, of nine: (pictures, 9)."""
    ones = functional.one_hot(cell_numbers(layouts), 9).float()
    told = torch.tensor([TOLD.get(name, 0) for name in ARRANGEMENT_NAMES])[layouts.arrangement]
    return (ones * (torch.arange(3) < told[:, None])[..., None]).sum(dim=1)


class ViewTruth(Answers):
    """The drawn truth of views: what the scene encoder reads and what the readout is asked for."""

    CHOICES = (
        len(SHAPES),
        len(ARRANGEMENT_NAMES),
        10,
        len(TEXTURES),
        len(TEXTURES),
        len(EDGES),
        len(PALETTE_NAMES) + 1,
    )
    NUMBERS = 15 + 2 + 2 + 2 + 9 + 2  # five colours in Lab, two directions, a place, the told places, an edge
    WIDTH = NUMBERS + sum(CHOICES)

    def __init__(self, views: Views, device: torch.device) -> None:
        layouts, subject, ground = views.layouts, views.subject, views.ground
        alone = layouts.arranged("one")
        colours = torch.cat([subject.palette_lab()[:, 2:], ground.palette_lab()[:, :2]], dim=1)
        numbers = [colours.flatten(1) / 30]
        numbers += [texture_direction(style) for style in (subject, ground)]
        numbers += [
            layouts.centre[:, 0] * 2.5 * alone[:, None],
            told_places(layouts),
            torch.stack([subject.softness, subject.outline], 1) * 30,
        ]
        place = torch.where(alone, cell_numbers(layouts)[:, 0], 9)
        palette = torch.where(subject.palette_name == ground.palette_name, subject.palette_name, -1) + 1
        told = [layouts.figure, layouts.arrangement, place]
        super().__init__(numbers, (*told, subject.texture, ground.texture, subject.edge, palette), device)

    def told_loss(self, readout: Tensor) -> Tensor:
        """Of figure, arrangement and place alone, which every caption tells."""
        choices = readout.float().split(self.CHOICES[:3], dim=1)
        return torch.stack([functional.cross_entropy(c, t) for c, t in zip(choices, self.choices, strict=False)]).sum()
