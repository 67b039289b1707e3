"""A ComfyUI that is too old gets one sentence with both versions, and no traceback; its server starts."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from semblance.harness.pinned import ROOT
from semblance.version import OLDEST_COMFYUI

# As ComfyUI imports a pack, in a process that has nothing else of ComfyUI.
LOAD = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("pack_x_dot_v2", sys.argv[1] + "/__init__.py")
module = importlib.util.module_from_spec(spec)
sys.modules["pack_x_dot_v2"] = module
spec.loader.exec_module(module)
print(module.NODE_CLASS_MAPPINGS, "torch" in sys.modules)
"""


def loaded_beside(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", LOAD, str(ROOT)], cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize("version", ["0.29.3", "0.3.75", "0.29.99-rc1"])
def test_an_older_comfyui_gets_one_sentence_that_names_both_versions(tmp_path: Path, version: str) -> None:
    (tmp_path / "comfyui_version.py").write_text(f'__version__ = "{version}"')
    made = loaded_beside(tmp_path)
    sentence = f"Semblance needs ComfyUI 0.30.0 or later, and this one is {version}. Update ComfyUI to use its nodes."
    assert made.stderr.strip() == f"ERROR:root:{sentence}"
    assert (made.returncode, made.stdout.strip()) == (0, "{} False")


def test_a_comfyui_that_does_not_name_its_version_is_older_still(tmp_path: Path) -> None:
    made = loaded_beside(tmp_path)
    assert "this one is older than 0.3.13. Update ComfyUI" in made.stderr and "Traceback" not in made.stderr


@pytest.mark.parametrize("version", ["0.30.0", "0.31.2", "1.0.0", "nightly"])
def test_any_other_is_served(tmp_path: Path, version: str) -> None:
    """As far as the first thing of ComfyUI that such a process lacks."""
    (tmp_path / "comfyui_version.py").write_text(f'__version__ = "{version}"')
    assert "No module named 'comfy_api'" in loaded_beside(tmp_path).stderr


def test_the_oldest_comfyui_is_that_of_the_manifest() -> None:
    manifest = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.findall(r'^requires-comfyui = ">=(.*)"', manifest, re.MULTILINE) == [".".join(map(str, OLDEST_COMFYUI))]
