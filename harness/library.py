"""The real ComfyUI as a library, and this checkout as the package `semblance`, in a process that is not ComfyUI's."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

from .pinned import ROOT, find_host

HOST_MODULES = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "execution", "folder_paths", "nodes", "server"}


class HostFinder(MetaPathFinder):
    """Puts ComfyUI on the path when one of its modules is first imported."""

    def __init__(self, cpu: bool) -> None:
        self.cpu = cpu

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in HOST_MODULES:
            return None
        sys.path.insert(0, str(find_host()))
        sys.meta_path.remove(self)
        # Read once, when comfy.model_management is first imported.
        importlib.import_module("comfy.cli_args").args.cpu = self.cpu
        return PathFinder.find_spec(fullname, path, target)


def use_library(cpu: bool = True) -> None:
    """From here on `import semblance...` finds this checkout, and `import comfy...` the real ComfyUI.

    The checkout's root `__init__.py` is not run, because that is for ComfyUI.
    """
    pack = ModuleType("semblance")
    pack.__path__ = [str(ROOT)]
    sys.modules["semblance"] = pack
    sys.meta_path.insert(0, HostFinder(cpu))
