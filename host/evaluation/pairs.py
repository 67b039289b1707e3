"""Pictures compared pair by pair: LPIPS and CFSD, as Scores with a row for each pair."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

from torch import Tensor

from ...metrics.cfsd import CFSD
from ...metrics.scores import Measure, Scores, fingerprint
from .networks import cfsd_network, lpips_network
from .sources import Pictures, Reading, as_they_are, check_pairs

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
    reading = Reading(max(len(first), len(second)), short_side)
    network = lpips_network(name)
    protocol = f"LPIPS v0.1 with {name}, pictures {as_they_are(short_side)}; lower is more alike"
    return _pair_scores("LPIPS", (first, second), reading, network, protocol)


def cfsd_scores(content: Pictures, stylised: Pictures, form: CFSDForm, short_side: int) -> tuple[Scores, str]:
    """CFSD of each pair, and a report.

    Raises ValueError for sources that do not pair up, and UnreadableFile if VGG-19's weights are not there.
    """
    check_pairs(content, stylised, measure="CFSD")
    reading = Reading(len(content), short_side)
    network = cfsd_network()
    module = network.module
    assert isinstance(module, CFSD)
    distance = module if form == "official" else module.per_place

    def measure(before: Tensor, after: Tensor) -> Tensor:
        _check_places(before, after)
        return network(after, before, measure=distance)

    told = "summed over places as in the authors' code" if form == "official" else "the mean over places"
    protocol = f"CFSD with VGG-19, {told}, pictures {as_they_are(short_side)}; lower keeps more of the content"
    return _pair_scores("CFSD", (content, stylised), reading, measure, protocol)


def _pair_scores(
    name: str,
    sources: tuple[Pictures, Pictures],
    reading: Reading,
    distance: Callable[[Tensor, Tensor], Tensor],
    protocol: str,
) -> tuple[Scores, str]:
    """A row for each pair that can be read; its picture is that of the longer source, or of the second."""
    many = max(reversed(sources), key=len)
    rows: list[str] = []
    values: list[float] = []
    pictures: list[str] = []
    for row, pair in reading.through(*sources):
        rows.append(many.names[row])
        check_same_size(many.names[row], *pair)
        values.append(float(distance(*pair)))
        pictures.append(fingerprint(pair[sources.index(many)][0]))
    measure = Measure(name, tuple(values), higher_is_better=False)
    scores = Scores(tuple(rows), (measure,), protocol, tuple(pictures))
    return scores, _report(scores, measure, f"{sources[0].name} against {sources[1].name}", reading.skipped_report())


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


def _report(scores: Scores, measure: Measure, what: str, skipped: str) -> str:
    low, high = measure.interval()
    lines = [
        f"{measure.name} {measure.mean:.4g} on average over {len(scores.rows)} pairs, {what}"
        f" (95 % interval of the mean: {low:.4g} to {high:.4g}).",
        f"{scores.protocol}.",
    ]
    order = measure.ranking()
    lines += [f"{measure.values[row]:.4g}  {scores.rows[row]}" for row in order[:MOST_ROWS]]
    if len(order) > MOST_ROWS:
        lines.append(f"and {len(order) - MOST_ROWS} more")
    return "\n".join([*lines, *([skipped] if skipped else [])])
