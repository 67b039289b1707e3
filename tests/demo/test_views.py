"""Training on the world of figures, at the size of a test: every part is written, and the probe tells its ratios."""

from __future__ import annotations

import json
import shutil
from functools import partial, partialmethod
from pathlib import Path

import pytest
import torch

from semblance.demo.training import loop, parts, views
from semblance.demo.training.carried import IMAGES, carried, shared
from semblance.demo.training.loop import Plan
from semblance.demo.training.places import teach_places
from semblance.demo.training.unet import attend


def test_sharing_without_any_subject_leaves_every_picture_its_own_keys() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, IMAGES, 6, 8).unbind()
    nobody = {6: torch.zeros(IMAGES, 6, dtype=torch.bool)}
    expected = attend(query, key, value, 2)
    for own in (True, False):
        torch.testing.assert_close(shared(nobody, own)(query, key, value, {"n_heads": 2}), expected)


def test_sharing_shows_a_picture_the_others_subjects_and_nothing_of_their_grounds() -> None:
    torch.manual_seed(1)
    query, key, value = torch.randn(3, IMAGES, 6, 8).unbind()
    mask = torch.zeros(IMAGES, 6, dtype=torch.bool)
    mask[1, 2] = mask[3, 4] = True
    before = shared({6: mask})(query, key, value, {"n_heads": 2})
    value = value.clone()
    value[1, 3] += 5  # ground of the second
    after = shared({6: mask})(query, key, value, {"n_heads": 2})
    assert torch.equal(before[[0, 2, 3]], after[[0, 2, 3]]) and not torch.equal(before[1], after[1])
    value[1, 2] += 5  # its subject
    moved = shared({6: mask})(query, key, value, {"n_heads": 2})
    assert all(not torch.equal(after[row], moved[row]) for row in range(IMAGES))


@pytest.mark.slow
def test_text_and_unet_are_trained_one_on_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(parts.MODELS_FOLDER, tmp_path / "models")
    for module in (loop, parts):
        monkeypatch.setattr(module, "MODELS_FOLDER", tmp_path / "models")
    for module in (loop, views):
        monkeypatch.setattr(module, "RUNS_FOLDER", tmp_path / "runs")
    monkeypatch.setattr(views, "SHARD", 32)
    monkeypatch.setattr(views, "SHARDS", 1)
    monkeypatch.setattr(views, "teach_places", partial(teach_places, steps=3))
    monkeypatch.setattr(views, "carried", partial(carried, stories=1))
    monkeypatch.setattr(views.Denoiser, "sample", partialmethod(views.Denoiser.sample, steps=1))
    views.train_view_text(Plan(views.TEXT, 2, 2e-3, seed=1), batch=8)
    views.train_view_unet(Plan(views.UNET, 2, 1e-3, seed=1, average=0.9, muon=10.0), batch=4)
    figures = json.loads((tmp_path / "models" / f"{views.UNET}.json").read_text())["figures"]
    assert {"apart_900", "subjects_900", "others_900", "zeroed_900"} <= set(figures)
    assert (tmp_path / "models" / f"{views.TEXT}.safetensors").exists()
