"""The demo models draw what they are told, and have not learned their pictures by heart."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from semblance.demo.captions import full_captions
from semblance.demo.metrics import estimate, measure
from semblance.demo.study import Study
from semblance.demo.training.judge import judge_drawings
from semblance.demo.world import draw, held_out, sample_scenes

pytestmark = pytest.mark.behaviour


@pytest.fixture(scope="module")
def made(study: Study) -> Tensor:
    """A picture for each of 64 full captions of combinations never drawn for training."""
    return study.sample(full_captions(study.pairs.asked))


def test_the_judge_is_right_about_drawings_it_never_saw(study: Study) -> None:
    figures = judge_drawings(study.judge, torch.device("cpu"), count=512)
    assert figures["shape_right"] >= 0.97 and figures["place_right"] >= 0.97
    assert figures["figure_iou"] >= 0.9


def test_words_alone_settle_shape_and_place(study: Study, made: Tensor) -> None:
    found = measure(made, study.pairs.asked, study.pairs.asked, study.judge)
    assert estimate(found["shape_right"]).high >= 0.9, estimate(found["shape_right"])
    assert estimate(found["place_right"]).high >= 0.9, estimate(found["place_right"])


def test_words_alone_settle_colours_and_texture(study: Study, made: Tensor) -> None:
    """Not exactly: hues, angles and frequencies have no words. Another drawing of the world is what chance gives."""
    asked, other = study.pairs.asked, study.pairs.references
    found = measure(made, asked, asked, study.judge)
    chance = measure(draw(other).pictures, asked, asked, study.judge)
    named = asked.style.palette_name >= 0
    assert found["palette"][named].mean() <= 0.5 * chance["palette"][named].mean()
    assert found["texture"].mean() <= 0.9 * chance["texture"].mean()


def test_every_pair_is_of_combinations_never_drawn_for_training(study: Study) -> None:
    assert len(study.pairs) >= 64
    assert held_out(study.pairs.references).all()
    assert (study.pairs.asked.content.shape[:, 0] != study.pairs.references.content.shape[:, 0]).all()


def test_no_picture_is_one_of_those_trained_on(study: Study, made: Tensor) -> None:
    """What was made lies no nearer to the nearest training drawing than a fresh drawing does."""
    trained = torch.cat([draw(sample_scenes(64, 1_000_000 + start), 32).pictures for start in range(0, 4096, 64)])
    fresh = draw(study.pairs.asked, 32).pictures
    small = torch.nn.functional.interpolate(made, (32, 32), mode="area")
    nearest = [torch.cdist(p.flatten(1), trained.flatten(1)).min(dim=1).values for p in (small, fresh)]
    assert nearest[0].median() >= 0.6 * nearest[1].median()
    assert nearest[0].min() >= 0.3 * nearest[1].min()
