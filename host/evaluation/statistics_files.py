"""Statistics of a set of pictures kept in a file, so that FID need not read the pictures again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...metrics.frechet import FeatureStatistics
from ..files import STATISTICS, UnreadableFile, file_names, find_file, free_path, read_saved, save_tensors, saved_name

FORMAT = "semblance.statistics.1"
PREFIX = "statistics/"
"""What the name of a file begins with where a folder of pictures might stand."""


@dataclass(frozen=True, eq=False)
class SavedStatistics:
    """What FID compares of a set of pictures, as a file keeps it."""

    name: str
    """E.g. "statistics/photos"."""
    statistics: FeatureStatistics
    network: str
    """The fingerprint of the Inception it was made with."""


def is_saved(name: str) -> bool:
    """Whether a text names a file of statistics rather than a folder."""
    return name.strip().startswith(PREFIX)


def statistics_path(name: str) -> Path:
    """Where statistics will be kept under this name; a number is added if it is taken. Raises UnwritableFile."""
    return free_path(STATISTICS, name.strip().removeprefix(PREFIX))


def save_statistics(path: Path, statistics: FeatureStatistics, network: str, version: str) -> str:
    """Writes a file to where `statistics_path` said, and returns its name. Raises UnwritableFile."""
    save_tensors(path, statistics.state(), {"format": FORMAT, "semblance": version, "network": network})
    return PREFIX + saved_name(STATISTICS, path).removesuffix(".safetensors")


def load_statistics(name: str) -> SavedStatistics:
    """Opens a saved file. Raises UnreadableFile for one that is missing, damaged or of another kind."""
    path = _find(name)
    tensors, metadata = read_saved(STATISTICS, path, name, FORMAT)
    try:
        return SavedStatistics(name.strip(), FeatureStatistics.from_state(tensors), metadata["network"])
    except (KeyError, ValueError) as fault:
        raise UnreadableFile(f"'{name}' is damaged ({fault}). Save the statistics again.") from fault


def saved_fingerprint(name: str) -> str:
    """Changes when the file does. Raises UnreadableFile if it is not there."""
    path = _find(name)
    return f"{path} {path.stat().st_mtime_ns}"


def _find(name: str) -> Path:
    wanted = name.strip().removeprefix(PREFIX).removesuffix(".safetensors") + ".safetensors"
    known = [PREFIX + file.removesuffix(".safetensors") for file in file_names(STATISTICS)]
    if PREFIX + wanted.removesuffix(".safetensors") not in known:
        there = f"There are: {', '.join(known[:10])}." if known else "There are none yet."
        raise UnreadableFile(
            f"There are no saved statistics called '{name.strip()}'. {there} FID saves those of b under the name in "
            "its input save."
        )
    return find_file(wanted, STATISTICS)
