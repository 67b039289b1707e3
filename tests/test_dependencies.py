"""Who may import whom: the architecture, walked over the source. Every test lists its offenders."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from semblance.harness.pinned import ROOT
from semblance.version import VERSION

COMFYUI = ("comfy", "comfy_extras", "comfy_execution", "folder_paths", "server", "execution", "latent_preview")
DEVELOPMENT = ("tests", "harness", "bench", "demo", "diffusers", "pytest")
SHIPPED = ("attention", "metrics", "host", "nodes")
NETWORK = ("requests", "urllib", "aiohttp", "socket", "subprocess", "huggingface_hub")
STAIR = ("functional", "engine", "references", "subjects", "families", "adapters", "methods")
"""The folders of `attention/`; each may use those before it."""


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imports_of(path: Path) -> Iterator[str]:
    """Modules a file imports, those of the pack by their path from its root, e.g. `attention.engine.call`."""
    package = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            yield ".".join((*base, *([node.module] if node.module else [])))


def is_under(module: str, *roots: str) -> bool:
    return any(module == root or module.startswith(f"{root}.") for root in roots)


def offenders(paths: Iterable[Path], *forbidden: str) -> list[str]:
    """Every import of something forbidden, as `file: module`."""
    return [
        f"{path.relative_to(ROOT)}: {module}"
        for path in paths
        for module in imports_of(path)
        if is_under(module, *forbidden)
    ]


def test_what_computes_imports_torch_and_the_standard_library_alone() -> None:
    forbidden = ("comfy_api", "host", "nodes", "metrics", "numpy", "PIL", "safetensors", "torchvision")
    assert offenders(sources("attention"), *COMFYUI, *forbidden) == []


def test_what_measures_imports_torch_torchvision_and_the_standard_library_alone() -> None:
    allowed = ("torch", "torchvision", "metrics", *sys.stdlib_module_names)
    imported = [(path, module) for path in sources("metrics") for module in imports_of(path)]
    assert imported
    assert [f"{path.name}: {module}" for path, module in imported if not is_under(module, *allowed)] == []


def test_the_host_storey_knows_no_nodes_and_no_schemas() -> None:
    assert offenders(sources("host"), "nodes", "comfy_api") == []


def test_nodes_reach_comfyui_through_the_host_storey() -> None:
    assert offenders(sources("nodes"), *COMFYUI) == []


def test_folders_of_what_computes_use_those_before_them() -> None:
    upward = [
        line
        for place, folder in enumerate(STAIR)
        for line in offenders(
            sources(f"attention/{folder}"),
            "attention.__init__",
            *(f"attention.{later}" for later in STAIR[place + 1 :]),
        )
    ]
    assert upward == []
    assert {path.parent.name for path in (ROOT / "attention").glob("*/__init__.py")} == set(STAIR)


def test_a_method_imports_no_family_and_no_other_method() -> None:
    methods = ROOT / "attention" / "methods"
    found: list[str] = []
    for path in sources("attention/methods"):
        own = f"attention.methods.{path.relative_to(methods).parts[0].removesuffix('.py')}"
        found += [line for line in offenders([path], "attention.methods") if not is_under(line.partition(": ")[2], own)]
    assert found + offenders(sources("attention/methods"), "attention.families") == []


def test_nothing_shipped_leans_on_what_is_not() -> None:
    assert offenders(sources(*SHIPPED), *DEVELOPMENT) == []


def test_nothing_shipped_reaches_for_the_network() -> None:
    assert offenders(sources(*SHIPPED), *NETWORK) == []


def test_nothing_shipped_evaluates_text() -> None:
    calls = [
        f"{path.relative_to(ROOT)}: {call.func.id}"
        for path in sources(*SHIPPED)
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
    ]
    assert [call for call in calls if call.endswith((": eval", ": exec", ": compile"))] == []


@pytest.mark.parametrize("room", ["attention", "metrics"])
def test_what_computes_and_what_measures_are_tested_without_comfyui(room: str) -> None:
    """By folder; a method's runs on the host's sampler are tests of `host/`."""
    rooms = {path.name for path in ROOT.iterdir() if (path / "__init__.py").is_file()} - {room}
    hosted = [name for room in rooms for name in (room, f"semblance.{room}")]
    found = offenders(sources(f"tests/{room}"), *COMFYUI, *hosted, "semblance.tests")
    names = ("frozen_cases", "port_of_muse", "random_weights", "speeds")
    plain = tuple(f"semblance.tests.support.{name}" for name in names)
    assert [line for line in found if not line.endswith(plain)] == []
    assert offenders([ROOT / "tests" / "support" / f"{name.rpartition('.')[2]}.py" for name in plain], *COMFYUI) == []


def test_no_test_imports_from_a_test() -> None:
    imported = [(path, module) for path in sources("tests") for module in imports_of(path)]
    assert [str(path) for path, module in imported if re.search(r"\btests\..*\btest_\w+$", module)] == []


def test_the_version_is_one() -> None:
    stated = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert stated == [VERSION]
