"""The ground of the tests: the pack under a fixed name, the real ComfyUI when a test asks for it, one thread.

The checkout is the package `semblance` here, whatever its folder is called: `from semblance.attention.call import ...`,
`from semblance.tests.tiny_models import make_unet`. Its root `__init__.py` is not run, because that is for ComfyUI.
ComfyUI is looked for at the first import of one of its modules, so tests of the plain tensor code do without it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Before torch is imported: beside another job, two threads make these tiny models 20-100 times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.append(str(Path(__file__).resolve().parent.parent))

import pytest
import torch

from harness.library import use_library
from harness.pinned import ROOT

use_library()
torch.set_num_threads(1)
TRANSFORMER_NAMES = import_module("semblance.tests.support.speeds").TRANSFORMER_NAMES

if TYPE_CHECKING:
    from semblance.tests.support.transformers import TransformerFamily


class CheckoutIsNoPackage:
    """Keeps pytest from running the root `__init__.py` as that of a package of tests."""

    @staticmethod
    def pytest_collect_directory(path: Path, parent: pytest.Collector) -> pytest.Dir | None:
        return pytest.Dir.from_parent(parent, path=path) if path == ROOT else None


class OneServer:
    """Gives all files with tests on the server to one worker, so that it is started once; of the others each to any."""

    @staticmethod
    def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
        from xdist.scheduler import LoadFileScheduling

        @cache
        def on_the_server(file: str) -> bool:
            return "comfyui: ComfyUIServer" in (config.rootpath / file).read_text(encoding="utf-8")

        class Scheduling(LoadFileScheduling):
            def _split_scope(self, nodeid: str) -> str:
                file = nodeid.partition("::")[0]
                return "on the server" if on_the_server(file) else file

        return Scheduling(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(CheckoutIsNoPackage())
    if config.pluginmanager.hasplugin("xdist"):
        config.pluginmanager.register(OneServer())


@pytest.fixture(scope="session")
def comfyui() -> Iterator[object]:
    """One running ComfyUIServer with the pack in it; its stock loaders open tiny models."""
    from semblance.harness.server import ComfyUIServer

    with ComfyUIServer(extra_nodes=[ROOT / "tests" / "tiny_models"]) as server:
        yield server


@pytest.fixture(params=TRANSFORMER_NAMES, scope="session")
def family(request: pytest.FixtureRequest) -> TransformerFamily:
    """Each family of transformers in turn; see tests/support/transformers."""
    from semblance.tests.support.transformers import TRANSFORMERS

    return TRANSFORMERS[request.param]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Shows the end of the server's log with every failure of a test that used it."""
    report = yield
    server = getattr(item, "funcargs", {}).get("comfyui")
    if report.failed and server is not None:
        report.sections.append(("ComfyUI's log", server.log_tail))
    return report
