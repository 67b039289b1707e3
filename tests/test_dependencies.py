"""Who may import whom: the architecture, walked over the source."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from semblance.hosting.pinned import ROOT
from semblance.version import VERSION

HOST = ("comfy", "comfy_extras", "comfy_execution", "folder_paths", "server", "execution", "latent_preview")
THIRD_PARTY = ("torch", "numpy", "PIL", "safetensors", "transformers")


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imports_of(path: Path) -> Iterator[str]:
    """Modules a file imports, those of the pack by their path from its root, e.g. `attention.call`."""
    package = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names if node.level)


def forbidden(path: Path, *prefixes: str) -> list[str]:
    return [name for name in imports_of(path) if any(name == p or name.startswith(f"{p}.") for p in prefixes)]


@pytest.mark.parametrize("path", sources("attention", "nodes"), ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_host_package_imports_comfyui(path: Path) -> None:
    if (ROOT / "attention" / "host") not in path.parents:
        assert forbidden(path, *HOST) == []


@pytest.mark.parametrize("path", sources("attention"), ids=lambda path: str(path.relative_to(ROOT)))
def test_what_computes_knows_no_nodes(path: Path) -> None:
    assert forbidden(path, "nodes", "comfy_api") == []


@pytest.mark.parametrize("path", sources("attention/functional"), ids=lambda path: path.name)
def test_formulas_import_torch_alone(path: Path) -> None:
    assert forbidden(path, "attention", *(name for name in THIRD_PARTY if name != "torch")) == [
        name for name in imports_of(path) if name.startswith("attention.functional")
    ]


@pytest.mark.parametrize("path", sources("attention/methods"), ids=lambda path: path.name)
def test_a_method_imports_no_host_no_family_and_no_other_method(path: Path) -> None:
    assert forbidden(path, "attention.host", "attention.families", "attention.methods") == []


@pytest.mark.parametrize("path", sources("attention/families"), ids=lambda path: path.name)
def test_families_are_data_over_the_core_values(path: Path) -> None:
    allowed = ("attention.call", "attention.families")
    ours = forbidden(path, "attention")
    assert [name for name in ours if not name.startswith(allowed)] == []


@pytest.mark.parametrize("path", sources("attention", "nodes"), ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_shipped_leans_on_what_is_not(path: Path) -> None:
    assert forbidden(path, "tests", "hosting", "bench", "demo", "diffusers", "pytest") == []


@pytest.mark.parametrize("path", sources("attention", "nodes"), ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_evaluates_text_or_reaches_for_the_network(path: Path) -> None:
    assert forbidden(path, "requests", "urllib", "aiohttp", "socket", "subprocess", "huggingface_hub") == []
    calls = [n.func for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)]
    assert not [call.id for call in calls if isinstance(call, ast.Name) and call.id in ("eval", "exec", "compile")]


def test_the_version_is_one() -> None:
    stated = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert stated == [VERSION]
