"""Model folders of a test's own, so that nothing is read from or written to the host's."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty models folder, in which ComfyUI knows the folders it and the pack register at their start."""
    import folder_paths

    from semblance.host.files import register_folders

    root = tmp_path / "models"
    names = ("clip_vision", "text_encoders", "diffusion_models", "vae")
    stock = {name: ([str(root / name)], {".safetensors", ".bin"}) for name in names}
    monkeypatch.setattr(folder_paths, "models_dir", str(root))
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", stock)
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))
    register_folders()
    for name in ("ipadapter", "clip_vision", "text_encoders", "semblance/styles"):
        (root / name).mkdir(parents=True)
    return root
