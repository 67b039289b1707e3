"""An install, as ComfyUI's Manager makes it: it holds what it needs and no more, and works under any folder's name."""

from __future__ import annotations

import ast
import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy
import pytest
from PIL import Image

from semblance.harness.package import MEGABYTE, MOST_MEGABYTES, install, shipped_files, size
from semblance.harness.pinned import ROOT
from semblance.harness.server import ComfyUIServer

FOLDER = "style-and-subject.v2"
"""Unlike the checkout's and the pack's name, and with a point, which no module's name has."""
SHIPPED = shipped_files()
SOURCES = [path for path in SHIPPED if path.suffix == ".py"]
RUNS = {
    "__init__.py",
    "version.py",
    "nodes",
    "host",
    "attention",
    "metrics",
    "locales",
    "web",
    "workflows",
    "subgraphs",
    "demo",
}
TELLS = {"pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "NOTICE", "docs"}
HOST = {
    "comfy",
    "comfy_api",
    "comfy_execution",
    "comfy_extras",
    "comfyui_version",
    "execution",
    "folder_paths",
    "latent_preview",
    "node_helpers",
    "server",
}
LIGHT = {"torch", "torchvision", "numpy", "PIL", "safetensors"}
"""What ComfyUI has loaded before any pack."""
LATE = {"transformers"}
"""What ComfyUI brings, but takes seconds to import: only where it is used."""
TEMPLATES = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))


# What is in it


def test_nothing_ships_but_what_runs_and_what_tells_of_it() -> None:
    assert {path.parts[0] for path in SHIPPED} <= RUNS | TELLS
    assert {"__init__.py", "version.py", "pyproject.toml", "LICENSE", "NOTICE", "README.md"} <= set(map(str, SHIPPED))


def test_what_an_owner_fills_in_is_there_whole_or_not_at_all() -> None:
    """An address of ours that does not exist would be shown to everybody; docs/publishing.md says what to write."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (publisher,) = re.findall(r'^PublisherId = "(.*)"', project, re.MULTILINE)
    addresses = re.findall(r'^(Icon|Repository) = "https://', project, re.MULTILINE)
    assert sorted(addresses) == (["Icon", "Repository"] if publisher else [])
    assert "OWNER" not in project


def test_of_the_demo_only_the_models_ship_and_not_the_judge() -> None:
    demo = [path for path in SHIPPED if path.parts[0] == "demo"]
    assert {path.parts[:2] for path in demo} == {("demo", "models")}
    weights = {path.stem for path in (ROOT / "demo" / "models").rglob("*.safetensors")}
    assert {path.stem for path in demo if path.suffix == ".safetensors"} == weights - {"judge"}


def test_an_install_is_no_heavier_than_agreed() -> None:
    weighs = size(ROOT, SHIPPED) / MEGABYTE
    assert weighs <= MOST_MEGABYTES
    assert weighs > 0.9 * MOST_MEGABYTES, "it became lighter: lower MOST_MEGABYTES, so that it stays so"


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_nothing_that_ships_imports_what_does_not(path: Path) -> None:
    assert [name for name in imports(path) if name.startswith(".") and module_file(name) not in SHIPPED] == []


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_nothing_that_ships_imports_what_comfyui_does_not_bring(path: Path) -> None:
    outside = {name.partition(".")[0] for name in imports(path) if not name.startswith(".")}
    assert outside - set(sys.stdlib_module_names) - HOST - LIGHT - LATE == set()


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_what_is_slow_to_import_waits_until_it_is_used(path: Path) -> None:
    assert {name.partition(".")[0] for name in imports(path, at_once=True)} & LATE == set()


def imports(path: Path, at_once: bool = False) -> Iterator[str]:
    """The modules a file imports, those of the pack by their path from its root, as `.attention.families`.

    `at_once`: only those that come in when the file does.
    """
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    for node in run_at_once(tree) if at_once else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield str(node.module)
        elif isinstance(node, ast.ImportFrom):
            module = "." + ".".join([*path.parts[: -node.level], *([node.module] if node.module else [])])
            yield module
            yield from (name for alias in node.names if module_file(name := f"{module.rstrip('.')}.{alias.name}"))


def run_at_once(node: ast.AST) -> Iterator[ast.AST]:
    """What is under `node`, without what functions put off and what only type checkers read."""
    yield node
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from run_at_once(child)


def module_file(name: str) -> Path | None:
    """The file of one of the pack's modules, by its path from the root."""
    path = Path(*name.split(".")[1:])
    return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if (ROOT / file).is_file()), None)


# How it works


@pytest.fixture(scope="module")
def comfyui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyUIServer]:
    """A bare ComfyUI with an install among its custom nodes."""
    folder = install(tmp_path_factory.mktemp("install") / FOLDER)
    with ComfyUIServer(pack=None, extra_nodes=[folder]) as server:
        yield server


@pytest.mark.slow
def test_every_node_is_there_and_nothing_failed_to_import(comfyui: ComfyUIServer) -> None:
    from semblance.nodes import NODES

    known = comfyui.object_info()
    wanted = {node.define_schema().node_id for node in NODES}
    assert {name for name, node in known.items() if node["python_module"] == f"custom_nodes.{FOLDER}"} == wanted
    assert re.findall(r".*(?:IMPORT FAILED|Cannot import|Traceback).*", comfyui.log) == []


@pytest.mark.slow
def test_every_template_is_served_with_its_picture(comfyui: ComfyUIServer) -> None:
    assert sorted(comfyui.get("/workflow_templates")[FOLDER]) == TEMPLATES
    for name in TEMPLATES:
        served = comfyui.get(f"/api/workflow_templates/{FOLDER}/{name}.json")
        assert served == json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
        with urlopen(f"{comfyui.url}/api/workflow_templates/{FOLDER}/{name}.jpg") as answer:
            assert Image.open(io.BytesIO(answer.read())).format == "JPEG"


@pytest.mark.slow
def test_every_help_page_and_translation_is_served(comfyui: ComfyUIServer) -> None:
    translations = comfyui.get("/i18n")
    for page in (ROOT / "web" / "docs").glob("*/*.md"):
        with urlopen(f"{comfyui.url}/extensions/{FOLDER}/docs/{page.parent.name}/{page.name}") as answer:
            assert answer.read() == page.read_bytes()
        assert page.parent.name in translations[page.stem]["nodeDefs"]


@pytest.mark.slow
def test_the_demo_model_loads_and_paints_in_a_reference_s_style(comfyui: ComfyUIServer) -> None:
    styled, plain = (picture(comfyui, strength) for strength in (1.0, 0.0))
    assert styled.shape == (128, 128, 3) and styled.std() > 10
    assert numpy.abs(styled - plain).mean() > 1


def picture(server: ComfyUIServer, strength: float) -> Any:
    """What the demo's template saves in a few steps; (height, width, 3) in 0..255."""
    prompt = json.loads((ROOT / "tests" / "workflows" / "instantstyle_demo.json").read_text(encoding="utf-8"))
    changes = {"SemblanceInstantStyle": {"strength": strength}, "KSampler": {"steps": 6}}
    for node in prompt.values():
        node["inputs"] |= changes.get(node["class_type"], {})
    (path,) = server.outputs(server.run(prompt))
    return numpy.asarray(Image.open(path).convert("RGB")).astype(float)
