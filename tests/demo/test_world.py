"""The drawn world: seeded, its ground truth is what is drawn, content and style are independent."""

from __future__ import annotations

import torch

from semblance.demo.captions import STYLE_WORDS, content_captions, full_captions, write_captions
from semblance.demo.shapes import SHAPES, signed_distance
from semblance.demo.strewing import strewn
from semblance.demo.world import (
    EDGES,
    NAMED_STYLES,
    PALETTE_NAMES,
    TEXTURES,
    Scenes,
    draw,
    held_out,
    sample_scenes,
)


def scenes_of(shape: str, count: int = 200) -> Scenes:
    """Scenes with one crisp `shape` each."""
    scenes = sample_scenes(count, seed=3, split="any")
    one = (scenes.content.shape[:, 0] == SHAPES.index(shape)) & (scenes.content.shape[:, 1] < 0)
    return scenes.take((one & (scenes.style.edge == EDGES.index("crisp"))).nonzero()[:, 0])


def test_the_same_seed_draws_the_same_pictures_and_another_seed_others() -> None:
    first, second, other = (draw(sample_scenes(4, seed), 64).pictures for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert first.shape == (4, 3, 64, 64) and first.min() >= 0 and first.max() <= 1


def test_the_mask_covers_what_the_grid_holds_and_scales_with_the_radius() -> None:
    scenes = scenes_of("heart")
    assert len(scenes) > 0
    line = torch.linspace(-1, 1, 128)
    x, y = line[None, None, :].expand(1, 128, 128), -line[None, :, None].expand(1, 128, 128)
    grid = signed_distance(torch.tensor([SHAPES.index("heart")]), x, y)
    areas = draw(scenes, 128).masks[:, 0].mean(dim=(1, 2)) * 4  # the picture is 2 x 2
    inside = scenes.content.centre[:, 0].abs().amax(dim=1) + 1.2 * scenes.content.radius[:, 0] < 1
    expected = 4 * (grid < 0).float().mean() * scenes.content.radius[:, 0] ** 2
    torch.testing.assert_close(areas[inside], expected[inside], rtol=0.06, atol=0.0)


def test_edges_are_anti_aliased() -> None:
    mask = draw(scenes_of("heart"), 128).masks[0, 0]
    between = ((mask > 0.05) & (mask < 0.95)).sum()
    assert 50 < between < 1500  # a rim about a pixel wide, neither none nor a blur


def test_another_content_in_the_same_style_keeps_ground_and_texture() -> None:
    scenes = sample_scenes(6, seed=5)
    moved = Scenes(sample_scenes(6, seed=6).content, scenes.style)
    before, after = draw(scenes, 64), draw(moved, 64)
    assert torch.equal(before.textures, after.textures)
    ground = (before.masks.amax(1) + after.masks.amax(1) == 0)[:, None].expand_as(before.pictures)
    assert ground.any()
    assert torch.equal(before.pictures[ground], after.pictures[ground])


def test_combinations_held_out_are_never_drawn_for_training() -> None:
    assert not held_out(sample_scenes(500, seed=7)).any()
    assert held_out(sample_scenes(100, seed=7, split="held_out")).all()
    share = float(held_out(sample_scenes(2000, seed=7, split="any")).float().mean())
    assert 0.08 < share < 0.17  # one in eight


def test_captions_name_the_shapes_and_the_texture_that_are_drawn() -> None:
    scenes = sample_scenes(60, seed=8)
    for row, (content, whole) in enumerate(zip(content_captions(scenes), full_captions(scenes), strict=True)):
        drawn = [SHAPES[int(shape)] for shape in scenes.content.shape[row] if shape >= 0]
        assert all(shape in content for shape in drawn)
        assert content.count(" and ") == len(drawn) - 1
        assert whole.startswith(content)
    assert len({TEXTURES[int(texture)] for texture in scenes.style.texture}) == len(TEXTURES)


def test_written_captions_are_seeded_and_leave_parts_out() -> None:
    scenes = sample_scenes(40, seed=9)
    assert write_captions(scenes, 1) == write_captions(scenes, 1) != write_captions(scenes, 2)
    lengths = {len(caption.split()) for caption in write_captions(scenes, 1)}
    assert len(lengths) > 4


def test_named_styles_are_drawn_and_called_by_their_names() -> None:
    scenes = sample_scenes(400, seed=11, split="any")
    style = scenes.style
    captions = full_captions(scenes)
    for name, (palette, texture, edge) in NAMED_STYLES.items():
        parts = (PALETTE_NAMES.index(palette), TEXTURES.index(texture), EDGES.index(edge))
        rows = (style.palette_name == parts[0]) & (style.texture == parts[1]) & (style.edge == parts[2])
        assert rows.any(), name
        assert all(captions[row].endswith(STYLE_WORDS[name][0]) for row in rows.nonzero()[:, 0].tolist())


def test_motifs_are_strewn_irregularly_and_alike_each_time() -> None:
    line = torch.linspace(-1, 1, 128)
    x, y = line[None, None, :].expand(2, 128, 128), -line[None, :, None].expand(2, 128, 128)
    field = strewn(torch.tensor([4.0, 4.0]), torch.tensor([[1.0, 2.0], [1.5, 2.0]]), x, y)
    assert torch.equal(field, strewn(torch.tensor([4.0, 4.0]), torch.tensor([[1.0, 2.0], [1.5, 2.0]]), x, y))
    assert not torch.equal(field[0], field[1])
    assert 0.1 < field.mean() < 0.35
    cell = 32  # pixels from one motif to the next
    moved = (field[:, :, cell:] - field[:, :, :-cell]).abs().mean()
    assert moved > 0.5 * (field[:, :, cell:] - field[:, :, cell:].mean()).abs().mean(), (
        "as a periodic texture would not"
    )
