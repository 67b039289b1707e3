"""A picture that ComfyUI saved and loaded is found again among those that were scored before."""

from __future__ import annotations

from pathlib import Path

import folder_paths
import pytest
import torch

from nodes import LoadImage, SaveImage
from semblance.metrics.scores import fingerprint


def test_a_picture_saved_and_loaded_by_comfyui_keeps_its_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path))
    picture = torch.rand(1, 40, 30, 3, generator=torch.Generator().manual_seed(2))
    (saved,) = SaveImage().save_images(picture)["ui"]["images"]
    loaded = LoadImage().load_image(saved["filename"])[0]
    assert not torch.equal(loaded, picture)
    assert fingerprint(loaded[0]) == fingerprint(picture[0])
