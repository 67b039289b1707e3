"""A cache of inversions in ComfyUI's temporary folder, which is emptied when ComfyUI starts."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import folder_paths
from torch import Tensor

from ..conditioning import Text
from ..files import UnreadableFile, UnwritableFile
from .cache_key import cache_key
from .runs import Inversion
from .trajectory_files import read_trajectory, write_trajectory


def cached_inversion(
    model: Any, pictures: Tensor, settings: object, text: Text, make: Callable[[], Inversion], version: str
) -> Inversion:
    """The inversion by `make`, or a cached one of the same model, pictures, settings and text.

    `settings` state what else the inversion depends on. The cache is not used where anything on the model or in the
    text cannot be compared, and left out where its folder cannot be written.
    """
    key = cache_key(model, pictures, settings, text)
    if key is None:
        return make()
    path = Path(folder_paths.get_temp_directory()) / "semblance" / f"trajectory_{key}.safetensors"
    kept = _kept(path)
    if kept is None:
        kept = make()
        _keep(path, kept, version)
    return kept


def _kept(path: Path) -> Inversion | None:
    try:
        if path.exists():
            trajectory, extra = read_trajectory(path, path.name)
            return Inversion(trajectory, extra["noise"])
    except (OSError, UnreadableFile) as fault:
        logging.warning("Semblance: a kept inversion cannot be read, so the picture is inverted again: %s", fault)
    return None


def _keep(path: Path, inversion: Inversion, version: str) -> None:
    try:
        write_trajectory(path, inversion.trajectory, version, {"noise": inversion.noise})
    except UnwritableFile as fault:
        logging.warning("Semblance: this inversion is not kept for the next run: %s", fault)
