"""Folders of pictures under ComfyUI's input and output, read one picture at a time."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import folder_paths
import numpy
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..files import UnreadableFile

ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
"""The kinds of pictures that are opened; others have readers that are less tried on strangers' files."""
MOST_PIXELS = 2**25
"""The largest picture that is opened: 8K, and any camera's 24 megapixels."""
EXAMPLE = "Write a folder such as input/photos or output/styled."


class UnreadablePicture(ValueError):
    """A file of a folder that is left out; the message says why, in a few words."""


@dataclass(frozen=True)
class PictureFolder:
    """The pictures of one folder, without those of its subfolders, in the order of their names."""

    name: str
    """As the user wrote it, with slashes."""
    root: Path
    """ComfyUI's input or output folder, with its links followed."""
    files: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.files)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(file.name for file in self.files)

    def read(self, index: int) -> Tensor:
        """One picture (1, height, width, 3) in [0, 1], turned as its camera was. Raises UnreadablePicture."""
        return read_picture(self.files[index], self.root)

    def fingerprint(self) -> str:
        """Changes when a picture is added, removed, renamed or written anew."""
        told = hashlib.sha256()
        for file in self.files:
            status = file.lstat()
            told.update(f"{file.name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode("utf-8", "surrogatepass"))
        return told.hexdigest()


def open_folder(name: str) -> PictureFolder:
    """The pictures of a folder under ComfyUI's input or output, e.g. "output/styled".

    Raises UnreadableFile for a folder that is elsewhere, is not there, or holds no picture.
    """
    written = name.strip().strip('"').replace("\\", "/").rstrip("/")
    root, path = _place(written)
    try:
        if not path.is_dir():
            raise UnreadableFile(f"There is no folder '{written}' (it would be {path}). {EXAMPLE}")
        root = root.resolve()
        if not path.resolve().is_relative_to(root):
            raise UnreadableFile(
                f"'{written}' is a link that leads out of {root}, and pictures are read from inside it only. Copy the "
                "pictures there."
            )
        files = _pictures_in(path)
    except OSError as fault:
        raise UnreadableFile(
            f"The folder '{written}' cannot be read ({fault.strerror}). Let ComfyUI read it, or write another."
        ) from fault
    if not files:
        raise UnreadableFile(
            f"The folder '{written}' holds no picture (PNG, JPEG, WebP, BMP or TIFF); those of its subfolders do not "
            f"count. {EXAMPLE}"
        )
    return PictureFolder(written, root, files)


def read_picture(path: Path, root: Path) -> Tensor:
    """One picture (1, height, width, 3) in [0, 1], turned as its camera was held. Raises UnreadablePicture."""
    if not path.resolve().is_relative_to(root):
        raise UnreadablePicture("a link that leads out of its folder")
    try:
        # Not by the host's `node_helpers.pillow`, which also reads half a file and paints the rest grey.
        with Image.open(path, formats=FORMATS) as file:
            if file.width * file.height > MOST_PIXELS:
                raise UnreadablePicture(f"{file.width}x{file.height} pixels, above {MOST_PIXELS:,} in all")
            pixels = _pixels(ImageOps.exif_transpose(file))
    except UnreadablePicture:
        raise
    except UnidentifiedImageError as fault:
        raise UnreadablePicture("not a picture of a known kind") from fault
    except Image.DecompressionBombError as fault:
        raise UnreadablePicture(f"above {MOST_PIXELS:,} pixels in all") from fault
    except (OSError, ValueError, SyntaxError, EOFError, struct.error) as fault:  # what Pillow's readers raise
        raise UnreadablePicture("the file is damaged") from fault
    return torch.from_numpy(pixels).unsqueeze(0)


def _pixels(image: Image.Image) -> numpy.ndarray:
    """(height, width, 3) in [0, 1], float32; transparency is taken off."""
    if image.mode.startswith("I"):  # grey in 16 bits, which Pillow would cut to 8
        grey = numpy.asarray(image).astype(numpy.float32) / 65535
        return numpy.repeat(grey.clip(0, 1)[..., None], 3, axis=2)
    return numpy.asarray(image.convert("RGB")).astype(numpy.float32) / 255


def skipped_report(skipped: Mapping[str, str], most: int = 5) -> str:
    """A sentence about the files that were left out and why, or nothing."""
    if not skipped:
        return ""
    told = [f"{name} ({why})" for name, why in list(skipped.items())[:most]]
    rest = f", and {len(skipped) - most} more" if len(skipped) > most else ""
    return f"Left out, {len(skipped)} in all: {', '.join(told)}{rest}."


def _pictures_in(path: Path) -> tuple[Path, ...]:
    """By name; without hidden files, which some systems write beside each picture under nearly its name."""
    with os.scandir(path) as entries:
        names = [entry.name for entry in entries if not entry.name.startswith(".") and not entry.is_dir()]
    return tuple(path / name for name in sorted(names) if Path(name).suffix.lower() in ENDINGS)


def _place(written: str) -> tuple[Path, Path]:
    """ComfyUI's input or output folder, and the path in it that `written` stands for."""
    places = {
        "input": Path(folder_paths.get_input_directory()).absolute(),
        "output": Path(folder_paths.get_output_directory()).absolute(),
    }
    first, *inside = PurePosixPath(written).parts or ("",)
    if first in places and ".." not in inside:
        return places[first], places[first].joinpath(*inside)
    path = Path(written)
    for root in places.values():
        if path.is_absolute() and ".." not in path.parts and path.is_relative_to(root):
            return root, path
    raise UnreadableFile(f"'{written}' is not a folder under ComfyUI's input or output. {EXAMPLE}")
