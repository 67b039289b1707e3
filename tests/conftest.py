"""The ground of the tests: the pack under a fixed name, the real ComfyUI when a test asks for it, one thread.

The checkout is the package `semblance` here, whatever its folder is called: `from semblance.attention.call import ...`,
`from semblance.tests.tiny_models import make_unet`. Its root `__init__.py` is not run, because that is for ComfyUI.
ComfyUI is looked for at the first import of one of its modules, so tests of the plain tensor code do without it.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Generator, Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

# Before torch is imported: beside another job, two threads make these tiny models 20-100 times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
HOST_MODULES = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "execution", "folder_paths", "nodes", "server"}


class HostFinder(MetaPathFinder):
    """Puts ComfyUI on the path, set to run on the CPU, when one of its modules is first imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in HOST_MODULES:
            return None
        from semblance.hosting.pinned import find_host

        sys.path.insert(0, str(find_host()))
        sys.meta_path.remove(self)
        # Read once, when comfy.model_management is first imported.
        importlib.import_module("comfy.cli_args").args.cpu = True
        return PathFinder.find_spec(fullname, path, target)


def register_pack() -> None:
    pack = ModuleType("semblance")
    pack.__path__ = [str(ROOT)]
    sys.modules["semblance"] = pack


register_pack()
sys.meta_path.insert(0, HostFinder())
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def comfyui() -> Iterator[object]:
    """One running ComfyUIServer with the pack in it; its stock loaders open tiny models."""
    from semblance.hosting.server import ComfyUIServer

    with ComfyUIServer(extra_nodes=[ROOT / "tests" / "tiny_models"]) as server:
        yield server


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Shows the end of the server's log with every failure of a test that used it."""
    report = yield
    server = getattr(item, "funcargs", {}).get("comfyui")
    if report.failed and server is not None:
        report.sections.append(("ComfyUI's log", server.log_tail))
    return report
