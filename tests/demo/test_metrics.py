"""What the demo measures with: zero for the same, in the stated units, blind to what they should not see."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from semblance.demo.metrics import (
    estimate,
    figure_overlap,
    gram_distance,
    measure,
    palette_distance,
    subject_distance,
    texture_distance,
)
from semblance.demo.training.judge import Judge, load_judge
from semblance.demo.world import Scenes, draw, single_shapes


@pytest.fixture(scope="module")
def judge() -> Judge:
    return load_judge()


def grey(*levels: float) -> torch.Tensor:
    return torch.tensor(levels)[:, None, None, None].expand(-1, 3, 32, 32)


def test_colours_are_told_apart_in_delta_e_wherever_they_are() -> None:
    # Greys of lightness 50 and 60 in CIE Lab.
    fifty, sixty = 0.4663, 0.5706
    (distance,) = palette_distance(grey(fifty), grey(sixty))
    assert distance == pytest.approx(10, rel=0.2)  # 32 directions approximate the mean over all
    picture = torch.rand((1, 3, 32, 32), generator=torch.Generator().manual_seed(1))
    assert palette_distance(picture, picture.flip(-1).roll(5, dims=-2)).item() < 1e-3


def test_texture_is_told_apart_by_its_direction_and_not_by_its_place() -> None:
    along = torch.arange(128) * (2 * torch.pi * 5 / 128)
    stripes = (along.sin() / 4 + 0.5).expand(1, 3, 128, 128)
    assert texture_distance(stripes, stripes.transpose(-1, -2)).item() > 0.9
    assert texture_distance(stripes, stripes.roll(9, dims=-1)).item() < 0.1


@pytest.mark.behaviour
def test_a_drawing_is_its_own_ideal(judge: Judge) -> None:
    scenes = single_shapes(32, 5, "held_out")
    found = measure(draw(scenes).pictures, scenes, scenes, judge)
    for name in ("palette", "texture", "gram"):
        assert found[name].max() < 1e-3, name
    assert found["shape_right"].mean() >= 0.95 and found["place_right"].mean() >= 0.95
    assert found["shape_leaked"].sum() == 0


@pytest.mark.behaviour
def test_another_style_is_far_and_another_content_leaks(judge: Judge) -> None:
    asked, shown = single_shapes(32, 5, "any"), single_shapes(32, 6, "any")
    found = measure(draw(shown).pictures, asked, shown, judge)
    other = shown.content.shape[:, 0] != asked.content.shape[:, 0]
    assert found["shape_leaked"][other].mean() > 0.9 and found["shape_leaked"][~other].sum() == 0
    assert found["place_leaked"].mean() > 0.9
    restyled = measure(draw(Scenes(asked.content, asked.style)).pictures, asked, shown, judge)
    assert restyled["palette"].mean() > 10 and restyled["texture"].mean() > 0.3


def test_the_figure_is_seen_where_it_is_drawn(judge: Judge) -> None:
    scenes = single_shapes(32, 8, "held_out")
    drawing = draw(scenes)
    assert figure_overlap(judge, drawing.pictures, drawing).mean() > 0.85
    elsewhere = draw(scenes.take(torch.arange(31, -1, -1)))
    assert figure_overlap(judge, elsewhere.pictures, drawing).mean() < 0.5


def test_one_subject_in_two_scenes_is_nearer_to_itself_than_to_another(judge: Judge) -> None:
    scenes = single_shapes(32, 9, "any")
    moved = Scenes(replace(scenes.content, centre=-scenes.content.centre), scenes.style)
    same = subject_distance(judge, draw(scenes).pictures, draw(moved).pictures)
    other = subject_distance(judge, draw(scenes).pictures, draw(moved).pictures.flip(0))
    assert same.mean() < other.mean() / 3


def test_features_do_not_depend_on_the_content_alone(judge: Judge) -> None:
    scenes, others = single_shapes(32, 10, "any"), single_shapes(32, 11, "any")
    with torch.no_grad():
        ours = judge(draw(scenes).pictures)
        same_style = judge(draw(Scenes(others.content, scenes.style)).pictures)
        same_content = judge(draw(Scenes(scenes.content, others.style)).pictures)
    assert gram_distance(ours, same_style).mean() < gram_distance(ours, same_content).mean()


def test_the_interval_covers_the_mean_and_widens_when_pictures_hang_together() -> None:
    generator = torch.Generator().manual_seed(3)
    apart = [estimate(torch.randn(64, generator=generator)) for _ in range(200)]
    assert 0.88 <= sum(found.low <= 0 <= found.high for found in apart) / 200 <= 0.99
    shared = torch.randn(16, generator=generator).repeat_interleave(4)
    one_by_one, together = estimate(shared), estimate(shared, groups=4)
    assert together.mean == pytest.approx(one_by_one.mean, abs=1e-6)
    assert together.high - together.low > 1.5 * (one_by_one.high - one_by_one.low)
