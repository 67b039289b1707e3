"""Folders of a test's own for weights and pictures."""

from __future__ import annotations

from pathlib import Path

import comfy.utils  # noqa: F401  (puts ComfyUI on the path)
import pytest

from semblance.tests.support.evaluation import own_folders


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with ComfyUI's models, input and output in it, all of them empty."""
    return own_folders(tmp_path, monkeypatch)
