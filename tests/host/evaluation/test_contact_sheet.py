"""The sheet shows every picture where its layout says, frames the picked ones, and holds its text."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from semblance.host.evaluation.contact_sheet import FRAME, GROUND, LARGEST, SheetLayout, draw_sheet


def flat(count: int, height: int = 40, width: int = 60) -> Tensor:
    """Pictures of one colour each."""
    colours = torch.linspace(0.2, 0.9, count)[:, None, None, None] * torch.tensor([1.0, 0.5, 0.25])
    return colours.expand(count, height, width, 3)


def captions(count: int) -> list[list[str]]:
    return [["text 0.123", "style -0.456"]] * count


def pixel(sheet: Tensor, x: float, y: float) -> list[int]:
    return (sheet[0, round(y), round(x)] * 255).round().int().tolist()


@pytest.mark.parametrize("count", [1, 2, 3, 8, 9, 17])
@pytest.mark.parametrize("size", [(40, 60), (96, 32), (64, 64)])
def test_every_picture_is_drawn_in_the_cell_of_its_number(count: int, size: tuple[int, int]) -> None:
    images = flat(count, *size)
    sheet, layout = draw_sheet(images, captions(count), [])
    assert tuple(sheet.shape) == (1, layout.size[1], layout.size[0], 3)
    for place, image in enumerate(images):
        left, top = layout.corner(place)
        x, y = left + layout.cell_width / 2, top + layout.gutter + layout.picture[1] / 2
        expected = (image[0, 0] * 255).round().int().tolist()
        assert pixel(sheet, x, y) == pytest.approx(expected, abs=2)


def test_only_what_was_picked_has_a_frame() -> None:
    sheet, layout = draw_sheet(flat(5), captions(5), [1, 4])
    inset, thickness = layout.frame()
    for place in range(5):
        left, top = layout.corner(place)
        on_the_frame = pixel(sheet, left + inset + thickness // 2, top + layout.cell_height // 2)
        assert on_the_frame == list(FRAME if place in (1, 4) else GROUND)


def test_a_frame_covers_neither_its_picture_nor_another_cell() -> None:
    plain, layout = draw_sheet(flat(4), captions(4), [])
    framed, _ = draw_sheet(flat(4), captions(4), [0])
    changed = (plain != framed).any(dim=-1)[0].nonzero()
    assert changed[:, 0].max() < layout.cell_height and changed[:, 1].max() < layout.cell_width
    top, left = layout.gutter, layout.cell_width // 2 - layout.picture[0] // 2
    inside = slice(top, top + layout.picture[1]), slice(left, left + layout.picture[0])
    assert torch.equal(plain[0][inside], framed[0][inside])


def test_text_is_drawn_below_its_picture_and_fits_the_cell() -> None:
    long = [["a measure with a very long name 0.123"]] * 2
    sheet, layout = draw_sheet(flat(2), long, [])
    below = sheet[0, layout.gutter + layout.picture[1] + 2 :, :]
    inked = (below.mean(dim=-1) > 0.5).any(dim=0).nonzero().flatten()
    assert len(inked) > 0
    for place in (0, 1):
        cell = [x for x in inked.tolist() if x // layout.cell_width == place]
        assert min(cell) >= place * layout.cell_width + layout.gutter - 1
        assert max(cell) <= (place + 1) * layout.cell_width - layout.gutter + 1


def test_very_many_pictures_stay_a_picture_that_can_be_shown() -> None:
    layout = SheetLayout.of(400, 512, 512, 2)
    assert max(layout.size) < 2 * LARGEST and layout.columns == 20
