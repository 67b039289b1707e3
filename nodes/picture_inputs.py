"""Inputs that take pictures: a connected IMAGE, or a folder by its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from comfy_api.latest import io
from torch import Tensor

from ..host.evaluation.folders import open_folder
from ..host.evaluation.sources import PictureBatch, Pictures
from ..host.evaluation.statistics_files import SavedStatistics, is_saved, load_statistics, saved_fingerprint
from ..host.files import UnreadableFile

FOLDER = (
    "Connect an IMAGE, or write a folder under ComfyUI's input or output, e.g. output/styled. A folder's pictures may "
    "have any sizes; they are read one at a time, in the order of their names. "
    "Write it here: a name that comes from another node is not watched for changes in the folder."
)


def pictures_input(name: str, tooltip: str) -> io.MultiType.Input:
    """A text field for a folder, to which an IMAGE may be connected instead."""
    return io.MultiType.Input(io.String.Input(name, default=""), types=[io.Image], tooltip=f"{tooltip} {FOLDER}")


def short_side_input(default: int, tooltip: str) -> io.Int.Input:
    """What every picture is scaled to."""
    return io.Int.Input("short_side", default=default, min=0, max=4096, step=1, tooltip=tooltip)


def read_pictures(name: str, given: Tensor | str) -> Pictures:
    """The pictures of an input called `name`. Raises UnreadableFile or ValueError if there are none."""
    return open_folder(given) if isinstance(given, str) else PictureBatch(name, given)


def read_set(name: str, given: Tensor | str) -> Pictures | SavedStatistics:
    """As `read_pictures`, or the saved statistics that a text names."""
    return load_statistics(given) if isinstance(given, str) and is_saved(given) else read_pictures(name, given)


def missing_pictures(**given: object) -> str | bool:
    """For `validate_inputs`: True, or the sentence for a folder that is not there.

    What comes from another node is not known before that has run, and is given as None.
    """
    return _missing(given, open_folder)


def missing_set(**given: object) -> str | bool:
    """As `missing_pictures`, for inputs that take saved statistics too."""
    return _missing(given, _fingerprint)


def pictures_fingerprint(*given: object) -> str:
    """For `fingerprint_inputs`: changes when a picture of a folder does, or a file of statistics."""
    try:
        return " ".join(_fingerprint(folder) for folder in given if isinstance(folder, str))
    except UnreadableFile as missing:  # the node says so when it runs
        return str(missing)


def _missing(given: Mapping[str, object], look: Callable[[str], object]) -> str | bool:
    for name, folder in given.items():
        if not isinstance(folder, str):
            continue
        if not folder.strip():
            return f"There are no pictures for {name}. Connect an IMAGE, or write a folder such as output/styled."
        try:
            look(folder)
        except UnreadableFile as missing:
            return str(missing)
    return True


def _fingerprint(folder: str) -> str:
    return saved_fingerprint(folder) if is_saved(folder) else open_folder(folder).fingerprint()
