"""Files in ComfyUI's output folder, named as its own nodes name them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path, PurePosixPath

import folder_paths

from .files import UnwritableFile, check_name, writing


def save_output(prefix: str, what: str, ending: str, content: bytes) -> PurePosixPath:
    """Writes a new file, numbered as ComfyUI numbers pictures: `prefix_00001_.csv`. Nothing is overwritten.

    Gives its path in the output folder. A slash in the prefix makes a folder, and `%year%` and the like are replaced.
    Raises UnwritableFile for prefixes that lead out of the output folder or that some system refuses; `what` names the
    file's kind.
    """
    plain = prefix.strip().replace("\\", "/")
    check_name(prefix, PurePosixPath(plain).parts, what)
    root = Path(folder_paths.get_output_directory())
    with writing(root / plain):
        folder, stem, number, subfolder = _numbered(prefix, plain, root)
        while not _written(path := Path(folder, f"{stem}_{number:05}_{ending}"), content):
            number += 1  # another run has just taken this one
    return PurePosixPath(Path(subfolder).as_posix(), path.name)


def _numbered(prefix: str, plain: str, root: Path) -> tuple[str, str, int, str]:
    """Folder, name, number and subfolder of the next file, as ComfyUI's own nodes find them."""
    try:
        return folder_paths.get_save_image_path(plain, str(root))[:4]
    except OSError:
        raise
    except Exception as refused:  # the host raises a bare one for a link that leads out of its folder
        raise UnwritableFile(
            f"'{prefix}' leads out of ComfyUI's output folder, {root}. Choose a name in that folder."
        ) from refused


def _written(path: Path, content: bytes) -> bool:
    """Whether the file is new, and now written."""
    try:
        file = path.open("xb")
    except FileExistsError:
        return False
    try:
        with file:
            file.write(content)
    except OSError:
        with suppress(OSError):  # the first fault is the one to tell of
            path.unlink()
        raise
    return True
