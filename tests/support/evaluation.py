"""Pictures in folders, and ComfyUI's folders moved into a test's own."""

from __future__ import annotations

from pathlib import Path

import folder_paths
import pytest
from PIL import Image
from torch import Tensor

from semblance.host.files import CLASSIFIERS, register_folders


def own_folders(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Moves ComfyUI's models, input and output into `root`, and returns that."""
    known = {CLASSIFIERS: ([str(root / "models" / CLASSIFIERS)], {""})}
    monkeypatch.setattr(folder_paths, "models_dir", str(root / "models"))
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", known)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    monkeypatch.setattr(folder_paths, "input_directory", str(root / "input"))
    monkeypatch.setattr(folder_paths, "output_directory", str(root / "output"))
    register_folders()
    for name in ("models/semblance/metrics", "models/classifiers", "input", "output"):
        (root / name).mkdir(parents=True)
    return root


def as_image(picture: Tensor) -> Image.Image:
    """One picture (height, width, 3) in [0, 1], in 8 bits."""
    return Image.fromarray((picture * 255).round().byte().numpy())


def write_pictures(folder: Path, pictures: Tensor) -> Path:
    """Writes a batch as 000.png, 001.png and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    for place, picture in enumerate(pictures):
        as_image(picture).save(folder / f"{place:03}.png")
    return folder
