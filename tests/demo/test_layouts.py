"""The world of figures: recognisable silhouettes, placed as told, each picture of one subject."""

from __future__ import annotations

import torch

from semblance.demo.captions import NOUNS
from semblance.demo.layout_captions import plain_captions, view_captions
from semblance.demo.layouts import (
    ARRANGEMENT_NAMES,
    ARRANGEMENTS,
    TOLD,
    TOLD_SHIFT,
    draw_views,
    sample_views,
)
from semblance.demo.shapes import GRID_REACH, SHAPES, signed_distance


def distances(figure: str, side: int = 96, reach: float = GRID_REACH) -> torch.Tensor:
    """Signed distances to one figure over the square from -reach to reach: (side, side), first row at the top."""
    line = torch.linspace(-reach, reach, side)
    x, y = line[None, None, :].expand(1, side, side), -line[None, :, None].expand(1, side, side)
    return signed_distance(torch.tensor([SHAPES.index(figure)]), x, y)[0]


def test_every_figure_fills_its_square_and_is_told_from_every_other() -> None:
    inside = torch.stack([distances(figure) < 0 for figure in SHAPES])
    assert ((inside.float().mean(dim=(1, 2)) > 0.1) & (inside.float().mean(dim=(1, 2)) < 0.6)).all()
    common = (inside[:, None] & inside).sum(dim=(2, 3)) / (inside[:, None] | inside).sum(dim=(2, 3))
    assert common.fill_diagonal_(0).max() < 0.8


def test_a_figure_stands_upright_and_keeps_its_eyes() -> None:
    tree = distances("tree") < 0
    widths = tree.sum(dim=1)
    assert widths[:48].sum() < widths[48:].sum()  # a fir is wider below
    ghost = distances("ghost")
    assert (ghost[30:48, 24:72] > 0.02).sum() > 20  # holes within the head


def test_distances_grow_as_lengths_do_also_beyond_the_grid() -> None:
    wide = distances("heart", reach=2.0)
    slope = torch.hypot(wide.diff(dim=0)[:, :-1], wide.diff(dim=1)[:-1]) * 95 / 4
    assert 0.9 < slope.median() < 1.05
    assert wide[0].min() > 0.8  # two radii up, one above the square


def test_the_same_seed_draws_the_same_views_and_another_seed_others() -> None:
    first, second, other = (draw_views(sample_views(12, seed), 64).pictures for seed in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert first.min() >= 0 and first.max() <= 1


def test_there_are_as_many_figures_as_the_arrangement_says_and_they_stand_apart() -> None:
    views = sample_views(300, 3)
    counts = (views.layouts.radius > 0).sum(dim=1)
    wanted = torch.tensor([len(where) for where, _ in ARRANGEMENTS.values()])[views.layouts.arrangement]
    assert torch.equal(counts, wanted)
    two = views.layouts.arranged("two side by side")
    centre, radius = views.layouts.centre[two], views.layouts.radius[two]
    assert (centre[:, 1, 0] - centre[:, 0, 0] > 1.9 * radius[:, 0]).all()


def test_a_single_figure_stands_where_it_is_told_to() -> None:
    views = sample_views(200, 4)
    alone = views.layouts.arranged("one")
    assert alone.sum() >= 64
    mask = draw_views(views, 64).masks[alone, 0]
    line = (torch.arange(64) + 0.5) / 32 - 1
    across = (mask.sum(dim=1) * line).sum(dim=1) / mask.sum(dim=(1, 2))
    upwards = (mask.sum(dim=2) * -line).sum(dim=1) / mask.sum(dim=(1, 2))
    places = torch.stack([across, upwards], dim=1)
    assert (places - 0.44 * views.layouts.place[alone, 0]).abs().max() < 0.25


def test_several_figures_stand_at_the_places_that_their_caption_tells() -> None:
    views = sample_views(400, 8)
    for name in ("pair", "trio"):
        rows = views.layouts.arranged(name).nonzero()[:, 0]
        told, centre = views.layouts.place[rows, : TOLD[name]], views.layouts.centre[rows, : TOLD[name]]
        assert len(rows) > 20 and (centre - TOLD_SHIFT * told).abs().max() <= 0.05
        assert all(len({tuple(place) for place in places}) == TOLD[name] for places in told.tolist())


def test_a_board_has_another_ground_in_every_quarter() -> None:
    views = sample_views(200, 6)
    boards = views.layouts.arranged("board").nonzero()[:, 0]
    assert len(boards) > 8
    drawing = draw_views(views, 64)
    corners = drawing.pictures[boards][:, :, [1, 1, -2, -2], [1, -2, 1, -2]]
    assert (corners.std(dim=2).mean() > 0.1).item()


def test_captions_name_the_figure_its_number_and_its_place() -> None:
    views = sample_views(200, 7)
    for row, caption in enumerate(plain_captions(views)):
        one, many = NOUNS[SHAPES[int(views.layouts.figure[row])]][0]
        arrangement = ARRANGEMENT_NAMES[int(views.layouts.arrangement[row])]
        assert (one if arrangement in ("one", "board") else many) in caption
        first = {"pair": "two", "trio": "three"}.get(arrangement, arrangement.split()[0])
        assert arrangement in ("one", "board") or caption.startswith(first)
    assert view_captions(views, 1) == view_captions(views, 1) != view_captions(views, 2)


def test_every_figure_has_two_names_and_no_name_is_given_twice() -> None:
    names = [one for words in NOUNS.values() for one, _ in words]
    assert tuple(NOUNS) == SHAPES
    assert len(names) == len(set(names)) == 2 * len(SHAPES)
