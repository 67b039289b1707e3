"""Every template opens in the real frontend without a fault, and its API form in the tests is the frontend's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from semblance.harness.library import ROOT
from semblance.tests.browser.frontend import Frontend

TEMPLATES = sorted((ROOT / "workflows").glob("*.json"))
COME_WITH_THE_PACK = {path.name for path in (ROOT / "demo" / "models").rglob("*.safetensors")}
FILES_OF = {
    "CheckpointLoaderSimple": 1,
    "ControlNetLoader": 1,
    "SemblanceLoadAdapter": 1,
    "CLIPVisionLoader": 1,
    "UNETLoader": 1,
    "CLIPLoader": 1,
    "DualCLIPLoader": 2,
    "VAELoader": 1,
}
"""How many of a loader's first widgets name a file."""
FOLDERS = ("checkpoints", "controlnet", "ipadapter", "clip_vision", "diffusion_models", "text_encoders", "vae")


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_the_template_opens_without_a_red_node_or_a_missing_link(
    frontend: Frontend, path: Path, tmp_path: Path
) -> None:
    frontend.load(json.loads(path.read_text(encoding="utf-8")))
    assert frontend.faults() == []
    with Image.open(frontend.screenshot(tmp_path / f"{path.stem}.png")) as picture:
        assert min(picture.size) > 300
        assert len(picture.getcolors(2**24) or []) > 100  # a graph is drawn, not an empty canvas


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_the_api_form_is_up_to_date(frontend: Frontend, path: Path) -> None:
    """When this fails, write what the frontend makes to tests/workflows/."""
    frontend.load(json.loads(path.read_text(encoding="utf-8")))
    kept = ROOT / "tests" / "workflows" / path.name
    assert frontend.api_prompt() == json.loads(kept.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_the_template_offers_every_model_it_loads_for_download(path: Path) -> None:
    workflow = json.loads(path.read_text(encoding="utf-8"))
    offered = {model["name"]: model for node in workflow["nodes"] for model in node["properties"].get("models", [])}
    loaded = {
        name for node in workflow["nodes"] for name in node.get("widgets_values", ())[: FILES_OF.get(node["type"], 0)]
    }
    assert loaded - COME_WITH_THE_PACK == set(offered)
    for model in offered.values():
        assert model["url"].startswith("https://huggingface.co/")
        assert model["url"].endswith(".safetensors")
        assert model["directory"] in FOLDERS
