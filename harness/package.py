"""What ships: the checkout as ComfyUI's registry packs it, how large that is, and how long ComfyUI takes to import it.

`python -m harness.package --output FOLDER` keeps the copy.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from statistics import median

from pathspec import GitIgnoreSpec

from .library import use_library
from .pinned import ROOT
from .server import PACK_NAME, ComfyUIServer

MEGABYTE = 1_000_000
MOST_MEGABYTES = 51.5
"""What an install may weigh. Lower it when the install gets lighter; raise it only for something users asked for."""


def shipped_files(checkout: Path = ROOT) -> list[Path]:
    """The files of an install by their paths from its root: what git tracks, less what .comfyignore names.

    So does the registry's publisher. Where git knows nothing of the checkout, as in a downloaded archive, all files
    count that .gitignore lets through.
    """
    patterns = _patterns(checkout / ".comfyignore")
    files = _tracked(checkout)
    if not files:
        patterns = [*_patterns(checkout / ".gitignore"), *patterns]
        files = [path.relative_to(checkout) for path in checkout.rglob("*")]
    ignored = GitIgnoreSpec.from_lines(patterns)
    return sorted(path for path in files if not ignored.match_file(path.as_posix()) and (checkout / path).is_file())


def install(folder: Path, checkout: Path = ROOT) -> Path:
    """Copies what ships into `folder`, which is made, and returns it."""
    for path in shipped_files(checkout):
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(checkout / path, target)
    return folder


def size(folder: Path, files: Iterable[Path]) -> int:
    """Bytes of some files in `folder`."""
    return sum((folder / path).stat().st_size for path in files)


def import_seconds(pack: Path) -> tuple[float, set[str]]:
    """How long ComfyUI takes to load `pack` when all of its own is loaded, and the libraries that came in with it.

    For a process of its own, after `use_library`.
    """
    host, *_ = (import_module(name) for name in ("nodes", "server", "comfy_config.config_parser"))
    sys.dont_write_bytecode = False  # a user's second start finds the bytecode of the first
    before = set(sys.modules)
    started = time.perf_counter()
    if not asyncio.run(host.load_custom_node(str(pack))):
        raise ImportError(f"ComfyUI could not import the pack in {pack}; its log says why.")
    seconds = time.perf_counter() - started
    return seconds, {name.partition(".")[0] for name in set(sys.modules) - before if not name.startswith(str(pack))}


def start_seconds(packs: Sequence[Path]) -> tuple[float, float]:
    """How long a ComfyUI with these packs takes until it answers, and what it says itself of importing them."""
    started = time.perf_counter()
    with ComfyUIServer(pack=None, extra_nodes=packs) as server:
        seconds = time.perf_counter() - started
        told = re.findall(r" ([\d.]+) seconds: .*custom_nodes", server.log)
    return seconds, sum(float(figure) for figure, _ in zip(told, packs, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m harness.package", description=__doc__)
    parser.add_argument("--output", type=Path, help="folder to keep the copy in; it must not be there yet")
    parser.add_argument("--rounds", type=int, default=3, help="how often each start is measured; 0 for the size alone")
    arguments = parser.parse_args()
    if arguments.output is not None and arguments.output.exists():
        parser.error(f"{arguments.output} is there already")
    with tempfile.TemporaryDirectory(prefix="semblance-") as scratch:
        folder = install((arguments.output or Path(scratch) / PACK_NAME).resolve())
        _tell_size(folder, Path(scratch))
        if arguments.rounds > 0:
            _tell_import(folder, arguments.rounds)
            _tell_start(folder, arguments.rounds)


def _tell_size(folder: Path, scratch: Path) -> None:
    files = shipped_files()
    archive = Path(shutil.make_archive(str(scratch / "archive"), "zip", folder))
    total, packed = size(folder, files) / MEGABYTE, archive.stat().st_size / MEGABYTE
    print(f"An install: {len(files)} files, {total:.2f} MB (at most {MOST_MEGABYTES:.2f}); to download {packed:.2f} MB")
    parts: Counter[str] = Counter()
    for path in files:
        parts[path.parts[0] if len(path.parts) > 1 else "files at the top"] += size(folder, [path])
    for name, weight in parts.most_common():
        print(f"  {name:16} {weight / MEGABYTE:7.2f} MB")


def _tell_import(folder: Path, rounds: int) -> None:
    (first, brought), *later = [_in_own_process(folder) for _ in range(1 + rounds)]
    print(f"Importing it into a ComfyUI: {first:.2f} s the first time, then {_spread([s for s, _ in later])}")
    print(f"  libraries that ComfyUI had not loaded itself: {', '.join(sorted(brought)) or 'none'}")


def _in_own_process(folder: Path) -> tuple[float, set[str]]:
    with ProcessPoolExecutor(1, get_context("spawn"), use_library) as process:
        return process.submit(import_seconds, folder).result()


def _tell_start(folder: Path, rounds: int) -> None:
    bare, packed = zip(*((start_seconds([]), start_seconds([folder])) for _ in range(rounds)), strict=True)
    print(f"ComfyUI's start without it: {_spread([seconds for seconds, _ in bare])}")
    print(f"  with it: {_spread([seconds for seconds, _ in packed])}")
    print(f"  ComfyUI's own figure for the import: {_spread([told for _, told in packed])}")


def _spread(seconds: Sequence[float]) -> str:
    return f"{median(seconds):.2f} s ({min(seconds):.2f} - {max(seconds):.2f})"


def _patterns(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines()


def _tracked(checkout: Path) -> list[Path]:
    command = ["git", "-C", str(checkout), "ls-files", "-z"]
    try:
        listed = subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return [Path(name) for name in listed.split("\0") if name]


if __name__ == "__main__":
    main()
