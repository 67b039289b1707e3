"""Files: their folders, opening them safely, and refusals that say what to do."""

from __future__ import annotations

import errno
import os
import pickle
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

import comfy.utils
import folder_paths
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

ADAPTERS = "ipadapter"
DEMO_ADAPTERS = "semblance_demo_ipadapter"
LORAS = "loras"
STYLES = "semblance_styles"
TRAJECTORIES = "semblance_trajectories"
SUBJECTS = "semblance_subjects"
STATISTICS = "semblance_statistics"
STYLE_ADAPTERS = "semblance_style_adapters"
SAVED = {STYLES: "style", TRAJECTORIES: "trajectory", SUBJECTS: "subject", STATISTICS: "file of statistics"}
SAVED |= {STYLE_ADAPTERS: "style adapter", LORAS: "LoRA"}
"""The contents of the folders that we write to, as a word for messages."""
SAVED_BY = {STATISTICS: "FID, under a name in its input save", STYLE_ADAPTERS: "Save Style Adapter"}
"""What writes them, where it is not the node Save with that word."""
METRICS = "semblance_metrics"
CLASSIFIERS = "classifiers"
CLIP_VISION = "clip_vision"
TEXT_ENCODERS = "text_encoders"
DEMO_MODELS = Path(__file__).resolve().parents[1] / "demo" / "models"
"""The small models that come with the pack."""
FORBIDDEN = re.compile(r'[<>:"|?*\x00-\x1f\ud800-\udfff]')
"""Characters that some operating system refuses or interprets in a file name."""
DEVICE = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])\s*(\..*)?", re.IGNORECASE)
"""Names that Windows keeps for devices, with any ending."""
TOO_LONG = 206
"""Windows' number of the error for names that are too long."""


class UnreadableFile(ValueError):
    """A file that is missing, damaged, or not what it should be; the message says which and what to do."""


class UnwritableFile(ValueError):
    """A file that cannot be written under its name; the message says why and what to do."""


def register_folders() -> None:
    """Adds our model folders to ComfyUI's, keeping those of other packs and of extra_model_paths.yaml."""
    models = Path(folder_paths.models_dir)
    _register(ADAPTERS, models / "ipadapter", set(folder_paths.supported_pt_extensions))
    _register(DEMO_ADAPTERS, DEMO_MODELS / "ipadapter", {".safetensors"})
    _register(LORAS, DEMO_MODELS / "loras", {".safetensors"})  # after ComfyUI's own, so that its loaders find them
    own = models / "semblance"
    _register(STYLES, own / "styles", {".safetensors"})
    _register(TRAJECTORIES, own / "trajectories", {".safetensors"})
    _register(SUBJECTS, own / "subjects", {".safetensors"})
    _register(STATISTICS, own / "statistics", {".safetensors"})
    _register(STYLE_ADAPTERS, own / "adapters", {".safetensors"})
    _register(METRICS, own / "metrics", {".safetensors", ".pth", ".pt", ".bin"})


def file_names(*folders: str) -> list[str]:
    """The names of all files in one or several model folders, sorted; with slashes, also on Windows."""
    names = {name for folder in folders for name in folder_paths.get_filename_list(folder)}
    return sorted(name.replace(os.sep, "/") for name in names)


def find_file(name: str | None, *folders: str, published: str = "") -> Path:
    """The full path of `name` in the first model folder that has it.

    A name written on Windows, with backslashes, is found everywhere. Raises UnreadableFile, naming the folders searched
    and where such a file is `published`.
    """
    for spelling in dict.fromkeys((name, name.replace("\\", "/"))) if name else ():
        for folder in folders:
            path = folder_paths.get_full_path(folder, spelling)
            if path is not None:
                return Path(path)
    # Without the pack's own folder, where nobody should put files.
    own = [folder for folder in folders if folder != DEMO_ADAPTERS]
    searched = " or ".join(str(path) for folder in own for path in folder_paths.get_folder_paths(folder))
    source = f" It is published at {published}." if published else ""
    wanted = f"The file '{name}' is not" if name else "No file is"
    raise UnreadableFile(f"{wanted} in {searched}. Put it there and press R to refresh.{source}")


def load_tensors(path: Path, device: torch.device | None = None) -> dict[str, Any]:
    """Opens a safetensors or PyTorch file, on the CPU if not told otherwise. No code in a pickle is run.

    Raises UnreadableFile for damaged files, for pickles with more than weights, and for weights without names.
    """
    try:
        found: Any = comfy.utils.load_torch_file(str(path), safe_load=True, device=device)
    except pickle.UnpicklingError as refused:
        raise UnreadableFile(
            f"'{path.name}' was not opened: it holds program code or is damaged, where only weights are expected. "
            "Download the file again from its publisher, as .safetensors if there is one."
        ) from refused
    except MemoryError:
        raise
    except Exception as fault:  # a broken file makes the readers raise almost anything
        raise UnreadableFile(
            f"'{path.name}' cannot be read: the file is damaged or its download is incomplete ({_first_line(fault)}). "
            "Download it again."
        ) from fault
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise UnreadableFile(
            f"'{path.name}' holds no weights by name, so it is not a model file. Download the file again."
        )
    return found


def shapes_in(path: Path) -> dict[str, Any]:
    """What `load_tensors` gives, with tensors on the meta device: weights are not read, which may be gigabytes.

    Raises UnreadableFile like it.
    """
    if path.suffix.lower() not in (".safetensors", ".sft"):
        return load_tensors(path, torch.device("meta"))
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: torch.empty(file.get_slice(name).get_shape(), device="meta") for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as fault:
        raise UnreadableFile(
            f"'{path.name}' cannot be read: the file is damaged or its download is incomplete ({fault}). "
            "Download it again."
        ) from fault


def free_path(folder: str, name: str) -> Path:
    """The path for a new file called `name` in a folder that we write to; a number is added if the name is taken.

    Raises UnwritableFile for names that lead out of that folder or that some system refuses, and for a folder that
    cannot be made.
    """
    plain = name.strip().replace("\\", "/").removesuffix(".safetensors")
    parts = PurePosixPath(plain).parts
    check_name(name, parts, SAVED[folder])
    wanted = _root(folder).joinpath(*parts)
    path, count = wanted.with_name(f"{wanted.name}.safetensors"), 1
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        while path.exists():
            count += 1
            path = wanted.with_name(f"{wanted.name} {count}.safetensors")
    return path


def saved_name(folder: str, path: Path) -> str:
    """The name by which a saved file is found again: its path relative to our folder, with slashes."""
    return path.relative_to(_root(folder)).as_posix()


def read_saved(folder: str, path: Path, name: str, written_as: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file written by this pack into a folder of ours.

    Raises UnreadableFile if it is damaged, or of another format than `written_as`.
    """
    what = SAVED[folder]
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            # A foreign file may be a checkpoint of many gigabytes.
            _check_format(folder, name, metadata, written_as)
            # Copies: Windows cannot replace a file while tensors are mapped to it.
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as fault:
        raise UnreadableFile(
            f"'{name}' cannot be read: the file is damaged ({fault}). Save the {what} again."
        ) from fault
    return tensors, metadata


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes a safetensors file atomically: completely or not at all. Raises UnwritableFile."""
    unfinished = path.with_suffix(".part")
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            comfy.utils.save_torch_file(tensors, str(unfinished), metadata=metadata)
            os.replace(unfinished, path)
        finally:
            with suppress(OSError):  # the first fault is the one to tell of
                unfinished.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Says in a sentence what keeps a file from being written."""
    try:
        yield
    except (OSError, SafetensorError) as fault:
        if getattr(fault, "errno", None) == errno.ENAMETOOLONG or getattr(fault, "winerror", None) == TOO_LONG:
            raise UnwritableFile(
                f"'{path}' holds a name that is too long: most systems take 255 bytes, and a Chinese character takes "
                "three of them. Choose a shorter name."
            ) from fault
        raise UnwritableFile(
            f"'{path.name}' cannot be written to {path.parent} ({_first_line(fault)}). Let ComfyUI write to this "
            "folder, and see that its disk has room."
        ) from fault


def check_name(name: str, parts: Sequence[str], what: str) -> None:
    """Raises UnwritableFile for a name that leads out of its folder, or that some operating system refuses."""
    why = None
    if not parts or ".." in parts or parts[0].startswith("/") or any(map(FORBIDDEN.search, parts)):
        why = ""
    elif any(map(DEVICE.fullmatch, parts)):
        why = ": Windows keeps it for a device"
    elif any(part != part.rstrip(". ") for part in parts):
        why = ": Windows takes no dot and no space at the end of a name"
    if why is not None:
        raise UnwritableFile(
            f"'{name}' is not a name for a {what}{why}. Use letters, digits and spaces, e.g. watercolour."
        )


def _check_format(folder: str, name: str, metadata: dict[str, str], written_as: str) -> None:
    if metadata.get("format") != written_as:
        what = SAVED[folder]
        raise UnreadableFile(
            f"'{name}' is not a {what} saved by Semblance (its format is '{metadata.get('format', 'not given')}'). "
            f"Choose a file written by {SAVED_BY.get(folder, f'Save {what.capitalize()}')}."
        )


def _register(name: str, path: Path, extensions: set[str]) -> None:
    paths, known = folder_paths.folder_names_and_paths.get(name, ([], set()))
    if str(path) not in paths:
        paths.append(str(path))
    # A folder that only extra_model_paths.yaml names has no extensions, so ComfyUI would list all files.
    folder_paths.folder_names_and_paths[name] = (paths, set(known) or extensions)


def _root(folder: str) -> Path:
    """The first folder of a kind; what is linked inside it stays a name inside it."""
    return Path(folder_paths.get_folder_paths(folder)[0]).absolute()


def _first_line(fault: BaseException) -> str:
    return str(fault).strip().split("\n")[0][:160] or type(fault).__name__
