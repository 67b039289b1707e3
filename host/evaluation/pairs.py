"""Pictures compared pair by pair: LPIPS and CFSD, as Scores with a row for each pair."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

import comfy.model_management
from torch import Tensor

from ...metrics.cfsd import CFSD
from ...metrics.scores import Measure, Scores, fingerprint
from .figures import interval_of
from .networks import cfsd_network, lpips_network
from .pairing import check_pairs, names_report, row_names
from .sources import Pictures, Reading, as_they_are, cut_report, scaled

LPIPSNetwork = Literal["alex", "vgg", "squeeze"]
LPIPS_NETWORKS: tuple[LPIPSNetwork, ...] = get_args(LPIPSNetwork)
CFSDForm = Literal["official", "paper"]
CFSD_FORMS: tuple[CFSDForm, ...] = get_args(CFSDForm)
MOST_PLACES = 2**22
"""The largest picture for CFSD, in pixels: 2048 x 2048, whose places make 70 thousand million pairs."""
MOST_ROWS = 30
"""How many pairs a report lists."""


def lpips_scores(first: Pictures, second: Pictures, name: LPIPSNetwork, short_side: int) -> tuple[Scores, str]:
    """LPIPS of each pair, or of one picture against many, and a report.

    Raises ValueError for sources that do not pair up, and UnreadableFile if the network's weights are not there.
    """
    check_pairs(first, second, one_for_all=True, measure="LPIPS")
    network = lpips_network(name)
    protocol = f"LPIPS v0.1 with {name}, pictures {as_they_are(short_side)}; lower is more alike"
    return _pair_scores("LPIPS", (first, second), short_side, network, protocol)


def cfsd_scores(content: Pictures, stylised: Pictures, form: CFSDForm, short_side: int) -> tuple[Scores, str]:
    """CFSD of each pair, and a report.

    Raises ValueError for sources that do not pair up, and UnreadableFile if VGG-19's weights are not there.
    """
    check_pairs(content, stylised, measure="CFSD")
    network = cfsd_network()
    module = network.module
    assert isinstance(module, CFSD)
    distance = partial(
        module if form == "official" else module.per_place,
        at_each_chunk=comfy.model_management.throw_exception_if_processing_interrupted,
    )

    def measure(before: Tensor, after: Tensor) -> Tensor:
        _check_places(before, after)
        return network(after, before, measure=distance)

    told = "summed over places as in the authors' code" if form == "official" else "the mean over places"
    protocol = f"CFSD with VGG-19, {told}, pictures {as_they_are(short_side)}; lower keeps more of the content"
    return _pair_scores("CFSD", (content, stylised), short_side, measure, protocol)


def _pair_scores(
    name: str,
    sources: tuple[Pictures, Pictures],
    short_side: int,
    distance: Callable[[Tensor, Tensor], Tensor],
    protocol: str,
) -> tuple[Scores, str]:
    """A row for each pair that can be read; its picture is that of the longer source, or of the second."""
    many = max(reversed(sources), key=len)
    reading, names = Reading(len(many)), row_names(sources, many)
    rows: list[str] = []
    values: list[float] = []
    pictures: list[str] = []
    for row, pair in reading.through(*sources):
        rows.append(names[row])
        pictures.append(fingerprint(pair[sources.index(many)][0]))  # unscaled, as other nodes are given it
        first, second = (scaled(picture, short_side) for picture in pair)
        check_same_size(rows[-1], first, second)
        values.append(float(distance(first, second)))
    measure = Measure(name, tuple(values), higher_is_better=False)
    scores = Scores(tuple(rows), (measure,), protocol, tuple(pictures))
    notes = [names_report(*sources), cut_report(*sources), reading.skipped_report()]
    return scores, _report(scores, measure, f"{sources[0].name} against {sources[1].name}", notes)


def check_same_size(name: str, first: Tensor, second: Tensor) -> None:
    """Raises ValueError unless the two pictures of a row have one size."""
    if first.shape != second.shape:
        one, other = (f"{picture.shape[2]}x{picture.shape[1]}" for picture in (first, second))
        raise ValueError(
            f"The pair '{name}' is {one} and {other} pixels, but the two are compared place by place. Crop or scale "
            "them to one size; short_side scales both, which is enough if they have one shape."
        )


def _check_places(*pictures: Tensor) -> None:
    for picture in pictures:
        if picture.shape[1] * picture.shape[2] > MOST_PLACES:
            raise ValueError(
                f"A picture has {picture.shape[2]}x{picture.shape[1]} pixels. CFSD compares each place with every "
                f"other, which takes too long above {MOST_PLACES:,} pixels. Set short_side to 512, as the authors "
                "measure."
            )


def _report(scores: Scores, measure: Measure, what: str, notes: list[str]) -> str:
    count, interval = len(scores.rows), interval_of(measure)
    over = "of 1 pair" if count == 1 else f"on average over {count} pairs"
    within = "" if interval is None else " (95 % interval of the mean: {:.4g} to {:.4g})".format(*interval)
    lines = [
        f"{measure.name} {measure.mean:.4g} {over}, {what}{within}.",
        f"{scores.protocol}.",
    ]
    order = measure.ranking()
    lines += [f"{measure.values[row]:.4g}  {scores.rows[row]}" for row in order[:MOST_ROWS]]
    if len(order) > MOST_ROWS:
        lines.append(f"and {len(order) - MOST_ROWS} more")
    return "\n".join([*lines, *filter(None, notes)])
