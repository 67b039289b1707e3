"""Writes what the measuring nodes need of a published file of weights as a small safetensors file.

`python -m harness.metric_weights vgg19-dcbb9e9d.pth` turns 548 MB into 2.2 MB. The file is read for its weights only.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .library import use_library

MEGABYTE = 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m harness.metric_weights", description=__doc__)
    parser.add_argument("files", type=Path, nargs="+", help="published files, .pth or .safetensors")
    parser.add_argument("--output", type=Path, default=Path(), help="the folder to write to; by default this one")
    arguments = parser.parse_args()
    use_library()
    for file in arguments.files:
        try:
            print(told(convert(file, arguments.output)))
        except ValueError as refused:
            parser.exit(1, f"{refused}\n")


def convert(file: Path, folder: Path) -> Path:
    """Writes the needed part of a file and returns where it lies; a name that is taken gets a number.

    Raises ValueError if no measuring node can use the file.
    """
    from safetensors.torch import save_file

    from semblance.host.evaluation.published import every_part
    from semblance.host.evaluation.weights import WeightsFile

    opened = WeightsFile(file)
    parts = [part for part in every_part() if opened.lacks(part) is None]
    if not parts:
        reasons = [why for part in every_part() if (why := opened.lacks(part))]
        raise ValueError(" ".join(reasons) or f"'{file.name}' holds no network that the measuring nodes use.")
    tensors = {name: tensor for part in parts for name, tensor in opened.tensors_of(part).items()}
    folder.mkdir(parents=True, exist_ok=True)
    path, count = folder / f"{file.stem}.safetensors", 1
    while path.exists():
        count += 1
        path = folder / f"{file.stem} {count}.safetensors"
    save_file(tensors, path, {"holds": " and ".join(part.what for part in parts)})
    return path


def told(path: Path) -> str:
    """A line about a file that was written."""
    return f"{path}: {path.stat().st_size / MEGABYTE:.1f} MB"


if __name__ == "__main__":
    main()
