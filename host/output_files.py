"""Files in ComfyUI's output folder, named as its own nodes name them."""

from __future__ import annotations

from contextlib import suppress
from itertools import count
from pathlib import Path, PurePosixPath

import folder_paths
from comfy_api.latest import io, ui

from .files import UnwritableFile, check_name, writing


def save_output(prefix: str, what: str, ending: str, content: bytes) -> ui.SavedResult:
    """Writes a new file, numbered as ComfyUI numbers pictures: `prefix_00001_.csv`. Nothing is overwritten.

    A slash in the prefix makes a folder, and `%year%` and the like are replaced. Raises UnwritableFile for prefixes
    that lead out of the output folder or that some system refuses; `what` names the file's kind.
    """
    plain = prefix.strip().replace("\\", "/")
    check_name(prefix, PurePosixPath(plain).parts, what)
    root = Path(folder_paths.get_output_directory())
    with writing(root / plain):
        try:
            folder, stem, first, subfolder, _ = folder_paths.get_save_image_path(plain, str(root))
        except OSError:
            raise
        except Exception as refused:  # the host raises a bare one for a link that leads out of its folder
            raise UnwritableFile(
                f"'{prefix}' leads out of ComfyUI's output folder, {root}. Choose a name in that folder."
            ) from refused
        for number in count(first):
            path = Path(folder, f"{stem}_{number:05}_{ending}")
            with suppress(FileExistsError):  # another run has just taken this number
                _write_new(path, content)
                return ui.SavedResult(path.name, subfolder, io.FolderType.output)
    raise AssertionError("count() ended")


def _write_new(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        try:
            file.write(content)
        except OSError:
            with suppress(OSError):  # the first fault is the one to tell of
                path.unlink()
            raise
