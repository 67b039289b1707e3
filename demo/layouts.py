"""The world of figures: one at a told place, or several of a kind where their number says that they stand.

A *subject* is a figure with a coat: two or three colours and a pattern of its own, which moves with it. All figures of
a picture are of one subject. A *board* shows it on four grounds. Lengths, angles and frequencies as in `world`; a
coat's frequency is in cycles per figure.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .shapes import SHAPES, signed_distance
from .world import (
    LARGEST_SHIFT,
    PICTURE_SIZE,
    Drawing,
    Rows,
    Style,
    drawn_over,
    own_coordinates,
    pixel_centres,
    sample_style,
    texture_field,
    textured,
)

SLOTS = 9
PANELS = ((-1, 1), (1, 1), (-1, -1), (1, -1))  # quarters of a board, as its grounds are numbered
_ROWS_OF_THREE = tuple((0.64 * x, 0.64 * y) for y in (1, 0, -1) for x in (-1, 0, 1))
_QUARTERS = tuple((0.5 * x, 0.5 * y) for x, y in PANELS)
ARRANGEMENTS: dict[str, tuple[tuple[tuple[float, float], ...], tuple[float, float]]] = {
    "one": (((0.0, 0.0),), (0.38, 0.56)),
    "two side by side": (((-0.5, 0.0), (0.5, 0.0)), (0.34, 0.46)),
    "two one above the other": (((0.0, 0.5), (0.0, -0.5)), (0.34, 0.46)),
    "four": (_QUARTERS, (0.30, 0.42)),
    "nine": (_ROWS_OF_THREE, (0.22, 0.29)),
    "board": (_QUARTERS, (0.30, 0.42)),
    "pair": (((0.0, 0.0),) * 2, (0.24, 0.32)),
    "trio": (((0.0, 0.0),) * 3, (0.24, 0.32)),
}
"""Where the figures of each arrangement stand, and the bounds of their radius."""
ARRANGEMENT_NAMES = tuple(ARRANGEMENTS)
TOLD = {"one": 1, "pair": 2, "trio": 3}  # how many places the caption tells, where the arrangement does not settle them
TOLD_SHIFT = 0.62  # how far from the middle one of several at told places may stand
SHARES = (0.36, 0.08, 0.06, 0.08, 0.08, 0.08, 0.15, 0.11)
COATS = 3  # recurring coats of a figure, as dogs come in breeds
COATED = 0.35  # the share of subjects that wear one of them


@dataclass(frozen=True, eq=False)
class Layouts(Rows):
    """Which figure stands where; slots not used have radius 0."""

    figure: Tensor  # (pictures,) index into SHAPES
    arrangement: Tensor  # (pictures,) index into ARRANGEMENT_NAMES
    place: Tensor  # (pictures, 3, 2) -1, 0 or 1 each way: where the figures stand that the caption places
    centre: Tensor  # (pictures, SLOTS, 2) x, y
    radius: Tensor  # (pictures, SLOTS)
    turn: Tensor  # (pictures, SLOTS) radians anticlockwise

    def arranged(self, name: str) -> Tensor:
        """Which pictures have this arrangement: (pictures,) of booleans."""
        return self.arrangement == ARRANGEMENT_NAMES.index(name)


@dataclass(frozen=True, eq=False)
class Views:
    """Pictures of subjects before they are drawn."""

    layouts: Layouts
    subject: Style  # its colours of figure, figure accent and ink; its pattern and edge
    ground: Style  # its colours of ground and ground accent, and its texture
    others: tuple[Style, Style, Style]  # the grounds of a board's further panels

    def __len__(self) -> int:
        return len(self.layouts)


def sample_views(count: int, seed: int) -> Views:
    """Draws `count` views at random."""
    generator = torch.Generator().manual_seed(seed)
    layouts = sample_layouts(count, generator)
    subject = sample_subjects(layouts.figure, generator)
    grounds = [sample_style(count, generator, free_palettes=0.7) for _ in range(4)]
    return Views(layouts, subject, _own_ground(subject, grounds[0]), (grounds[1], grounds[2], grounds[3]))


def sample_layouts(count: int, generator: torch.Generator) -> Layouts:
    """Figures and places at random."""
    figure = torch.randint(len(SHAPES), (count,), generator=generator)
    arrangement = torch.multinomial(torch.tensor(SHARES), count, replacement=True, generator=generator)
    place = _told_cells(count, generator)
    spots, bounds, used = _arrangements()
    centre = spots[arrangement] + 0.05 * (2 * torch.rand((count, SLOTS, 2), generator=generator) - 1)
    for name, told in TOLD.items():
        rows = arrangement == ARRANGEMENT_NAMES.index(name)
        centre[rows, :told] += (LARGEST_SHIFT if name == "one" else TOLD_SHIFT) * place[rows, :told]
    low, high = bounds[arrangement].unbind(1)
    radius = low + (high - low) * torch.rand(count, generator=generator)
    turn = 0.36 * torch.rand((count, SLOTS), generator=generator) - 0.18
    return Layouts(figure, arrangement, place, centre, radius[:, None] * used[arrangement], turn)


def sample_subjects(figure: Tensor, generator: torch.Generator) -> Style:
    """A coat for each figure (subjects,): free, or one of the figure's recurring ones."""
    count = len(figure)
    free = _sample_coats(count, generator)
    breeds = _sample_coats(len(SHAPES) * COATS, torch.Generator().manual_seed(20_260_000))
    breed = breeds.take(figure * COATS + torch.randint(COATS, (count,), generator=generator))
    worn = (torch.rand(count, generator=generator) < COATED).long()
    both = Style.concatenate([free, replace(breed, phase=free.phase)])
    return both.take(torch.arange(count) + count * worn)


def draw_views(views: Views, size: int = PICTURE_SIZE) -> Drawing:
    """Draws all views at once, anti-aliased; the drawing's masks have one slot, of all figures of a picture."""
    layouts, subject = views.layouts, views.subject
    x, y = (axis.expand(len(views), size, size) for axis in pixel_centres(size, "cpu"))
    pictures, texture = _grounds(views, x, y)
    masks = torch.zeros_like(x)
    for slot in range(SLOTS):
        rows = (layouts.radius[:, slot] > 0).nonzero()[:, 0]
        if not len(rows):
            continue
        style = subject.take(rows)
        u, v, distance = _place(layouts.take(rows), style, slot, x[rows], y[rows])
        figure = textured(style, "figure", texture_field(style, u, v))
        pictures[rows], mask = drawn_over(pictures[rows], figure, style, distance, pixel=2.0 / size)
        masks[rows] = torch.maximum(masks[rows], mask)
    return Drawing(pictures, masks[:, None], texture)


def _grounds(views: Views, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Every picture's ground, and its texture; a board has a ground in each quarter."""
    board = views.layouts.arranged("board")
    pictures, texture = _ground(views.ground, x, y)
    for style, (right, up) in zip(views.others, PANELS[1:], strict=True):
        if board.any():
            panel, field = _ground(style.take(board), x[board], y[board])
            here = (x[board] * right > 0) & (y[board] * up > 0)
            pictures[board] = torch.where(here[:, None], panel, pictures[board])
            texture[board] = torch.where(here, field, texture[board])
    return pictures, texture


def _ground(style: Style, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    field = texture_field(style, x, y)
    return textured(style, "ground", field), field


def _place(layouts: Layouts, style: Style, slot: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The figure's own coordinates u, v, which its coat is drawn in, and the distance to it."""
    radius = layouts.radius[:, slot]
    u, v = own_coordinates(layouts.centre[:, slot], radius, layouts.turn[:, slot], x, y)
    phase = style.phase[:, :, None, None]
    ripple = (9.0 * u + phase[:, 0]).sin() * (9.0 * v + phase[:, 1]).sin()
    return u, v, (signed_distance(layouts.figure, u, v) + style.wobble[:, None, None] * ripple) * radius[:, None, None]


def _sample_coats(count: int, generator: torch.Generator) -> Style:
    """Looks of subjects: lines and fading are finer than those of plain shapes, so that eyes stay."""
    style = sample_style(count, generator, free_palettes=0.8)
    other = sample_style(count, generator, free_palettes=1.0)
    own_accent = torch.rand(count, generator=generator) < 0.5  # else a second colour of any hue
    oklch = style.oklch.clone()
    oklch[:, 3] = torch.where(own_accent[:, None], oklch[:, 3], other.oklch[:, 2])
    return replace(
        style,
        oklch=oklch,
        frequency=style.frequency / 2.6 * 1.1,
        softness=style.softness * 0.5,
        outline=style.outline * 0.6,
        wobble=style.wobble * 1.4,
    )


def _own_ground(subject: Style, ground: Style) -> Style:
    """The ground's colours are the subject's palette's own in half of the pictures, which so have one palette name."""
    named = (subject.palette_name >= 0) | (torch.arange(len(subject)) % 2 == 0)
    oklch = torch.where(named[:, None, None], subject.oklch, ground.oklch)
    name = torch.where(named, subject.palette_name, ground.palette_name)
    return replace(ground, oklch=oklch, palette_name=name)


def _arrangements() -> tuple[Tensor, Tensor, Tensor]:
    """Centres (arrangements, SLOTS, 2), bounds of the radius (arrangements, 2) and which slots are used."""
    spots = torch.zeros(len(ARRANGEMENTS), SLOTS, 2)
    bounds, used = torch.zeros(len(ARRANGEMENTS), 2), torch.zeros(len(ARRANGEMENTS), SLOTS)
    for row, (where, limits) in enumerate(ARRANGEMENTS.values()):
        spots[row, : len(where)] = torch.tensor(where)
        bounds[row] = torch.tensor(limits)
        used[row, : len(where)] = 1
    return spots, bounds, used


def _told_cells(count: int, generator: torch.Generator) -> Tensor:
    """Three different places of the nine for each row: (count, 3, 2)."""
    cells = torch.tensor([(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1)])
    return cells[torch.rand((count, 9), generator=generator).argsort(dim=1)[:, :3]]
