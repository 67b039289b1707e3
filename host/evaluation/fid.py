"""FID between two sets of pictures, as Scores of one row."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from ...metrics.frechet import SMALLEST_SUBSET, FeatureStatistics, frechet_distance, frechet_infinity
from ...metrics.inception import WIDTH
from ...metrics.scores import Measure, Scores
from .gathered import Gathered
from .networks import Network, fid_network
from .sources import Pictures, Reading, cut_report
from .statistics_files import SavedStatistics, save_statistics, statistics_path

FIDForm = Literal["FID", "FID-infinity"]
FID_FORMS: tuple[FIDForm, ...] = get_args(FIDForm)
Side = Pictures | SavedStatistics
FEW = f"With fewer than {WIDTH:,} pictures the number hangs on how many there are: compare under the same protocol only"


@dataclass(frozen=True)
class FIDResult:
    """What FID found."""

    scores: Scores
    distance: float
    report: str


def fid_scores(first: Side, second: Side, form: FIDForm, save: str, version: str) -> FIDResult:
    """FID between two sets; the statistics of the second are kept under the name `save`, unless it is empty.

    Raises ValueError for a set of one picture and for statistics that do not fit, UnreadableFile if the network's
    weights are not there, and UnwritableFile for a name that cannot be written.
    """
    sides = (first, second)
    sources = [side for side in sides if not isinstance(side, SavedStatistics)]
    check_sets("FID", *sources)
    endless = form == "FID-infinity" and _is_large(sides)
    path = statistics_path(save) if save.strip() else None  # before hours of reading
    reading = Reading(sum(map(len, sources)))
    network = fid_network() if reading.total else None
    weights = _weights(sides, network)
    sets = [side if isinstance(side, SavedStatistics) else gather(side, network, reading, endless) for side in sides]
    statistics = [found.statistics for found in sets]
    if endless:
        ours, theirs = (found.features for found in sets if isinstance(found, Gathered))
        count = min(len(ours), len(theirs))  # a picture may have been left out
        generator = torch.Generator().manual_seed(0)
        distance = frechet_infinity(ours[:count], theirs[:count], generator=generator)
    else:
        distance = frechet_distance(*statistics)
    kept = ""
    if path is not None:
        name = save_statistics(path, statistics[1], weights, version)
        kept = f"The statistics of {second.name} are kept: write {name} in place of its folder."
    notes = [cut_report(*sources), reading.skipped_report(), kept]
    return _result(form, distance, (first.name, second.name), statistics, notes)


def gather(source: Pictures, network: Network | None, reading: Reading, keep: bool) -> Gathered:
    """The features of all pictures of a source that can be read. Raises ValueError if that is one."""
    assert network is not None
    found = Gathered(keep)
    for _, (picture,) in reading.through(source):
        found.add(network(picture))
    check_count("FID", source.name, found.count)
    return found


def check_sets(measure: str, *sources: Pictures) -> None:
    """Raises ValueError for a source of a single picture."""
    for source in sources:
        check_count(measure, source.name, len(source))


def check_count(measure: str, name: str, count: int) -> None:
    """Raises ValueError for a single picture, called `name`."""
    if count < 2:
        raise ValueError(
            f"{measure} compares how the pictures of a set differ among themselves, but {name} holds one that can be "
            "read. Give at least two; the number means something from some hundreds on."
        )


def _is_large(sides: tuple[Side, Side]) -> bool:
    """Whether FID-infinity differs from FID. Raises ValueError for sides it cannot be taken of."""
    saved = next((side.name for side in sides if isinstance(side, SavedStatistics)), None)
    if saved is not None:
        raise ValueError(
            f"FID-infinity needs every picture of both sets, but {saved} holds statistics alone. Write the folder of "
            "the pictures, or choose the form FID."
        )
    first, second = (len(side) for side in sides if not isinstance(side, SavedStatistics))
    if first != second:
        raise ValueError(
            f"FID-infinity takes as many pictures of both sets, but there are {first} and {second}. Give as many of "
            "one as of the other, or choose the form FID."
        )
    return first > SMALLEST_SUBSET


def _weights(sides: tuple[Side, Side], network: Network | None) -> str:
    """The fingerprint of the Inception that both sides were seen by. Raises ValueError if these are two."""
    saved = {side.name: side.network for side in sides if isinstance(side, SavedStatistics)}
    own = None if network is None else network_fingerprint(network)
    known = own or next(iter(saved.values()))
    for name, made_with in saved.items():
        if made_with != known:
            raise ValueError(
                f"'{name}' was made with other weights of the Inception than those now in use, so the two do not "
                "compare. Save the statistics again with these weights."
            )
    return known


def network_fingerprint(network: Network) -> str:
    """What tells a network's weights from others."""
    told = hashlib.sha256()
    for tensor in list(network.module.state_dict().values())[::40]:  # some of each depth tell it as well as all
        told.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return told.hexdigest()


def _result(
    form: FIDForm, distance: float, names: tuple[str, str], statistics: list[FeatureStatistics], notes: list[str]
) -> FIDResult:
    counts = [side.count for side in statistics]
    protocol = (
        f"{form} of {counts[0]} against {counts[1]} pictures by TensorFlow's Inception of 2015 (pool3), scaled to "
        "299x299 (bilinear, without antialiasing); lower is closer"
    )
    lines = [f"{form} {distance:.5g}: {names[0]} against {names[1]}.", f"{protocol}."]
    if form == "FID-infinity" and counts[0] <= SMALLEST_SUBSET:
        lines.append(f"Up to {SMALLEST_SUBSET:,} pictures FID-infinity is the plain FID.")
    if min(counts) < WIDTH:
        lines.append(f"{FEW}.")
        protocol += f". {FEW}"
    measure = Measure(form, (distance,), higher_is_better=False)
    scores = Scores((f"{names[0]} against {names[1]}",), (measure,), protocol)
    return FIDResult(scores, distance, "\n".join([*lines, *(note for note in notes if note)]))
