"""ArtFID of stylised pictures with their contents and styles, as Scores of one row."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from ...metrics.art_fid import PUBLISHED_POINTS, ArtFID
from ...metrics.frechet import SMALLEST_SUBSET, frechet_distance, frechet_infinity
from ...metrics.inception import WIDTH
from ...metrics.scores import Measure, Scores
from .fid import FEW, check_count, check_sets
from .gathered import Gathered
from .networks import art_fid_network, lpips_network
from .pairing import check_pairs, names_report, row_names
from .pairs import check_same_size
from .sources import Pictures, Reading, as_they_are, cut_report, scaled

ArtFIDForm = Literal["published", "plain"]
ART_FID_FORMS: tuple[ArtFIDForm, ...] = get_args(ArtFIDForm)


def art_fid_scores(
    content: Pictures, style: Pictures, stylised: Pictures, form: ArtFIDForm, short_side: int
) -> tuple[Scores, str]:
    """ArtFID with the FID and the LPIPS it is made of, and a report.

    The three sources hold as many pictures, in one order: a content and a style that was used for several outputs is
    there several times, as in the authors' evaluation. Raises ValueError otherwise, and UnreadableFile if the weights
    of a network are not there.
    """
    sources = (content, style, stylised)
    check_pairs(*sources, measure="ArtFID")
    check_sets("ArtFID", stylised)
    reading, names = Reading(len(stylised)), row_names(sources, stylised)
    inception, lpips = art_fid_network(), lpips_network("alex")
    endless = form == "published" and len(stylised) > SMALLEST_SUBSET
    made, wanted = Gathered(endless), Gathered(endless)
    distances: list[Tensor] = []
    for row, triple in reading.through(*sources):
        before, look, after = (scaled(picture, short_side) for picture in triple)
        check_same_size(names[row], before, after)
        distances.append(lpips(after, before))
        made.add(inception(after))
        wanted.add(inception(look))
    check_count("ArtFID", stylised.name, made.count)
    infinity = None
    if endless:
        generator = torch.Generator().manual_seed(0)
        infinity = frechet_infinity(made.features, wanted.features, PUBLISHED_POINTS, generator)
    fid = frechet_distance(made.statistics, wanted.statistics)
    found = ArtFID(float(torch.cat(distances).double().mean()), fid, made.count, infinity)
    notes = [names_report(*sources), cut_report(*sources), reading.skipped_report()]
    return _result(found, form, stylised.name, short_side, notes)


def _result(found: ArtFID, form: ArtFIDForm, name: str, short_side: int, notes: list[str]) -> tuple[Scores, str]:
    if form == "plain" or found.fid_infinity is None:
        of_sets, fid = "FID (art)", found.fid
    else:
        of_sets, fid = "FID-infinity (art)", found.fid_infinity
    value = found.plain if form == "plain" else found.published
    # By another network than FID's own: under the same name a table would set the two side by side.
    columns = {"ArtFID": value, of_sets: fid, "LPIPS": found.content}
    protocol = (
        f"ArtFID ({form}) of {found.count} stylised pictures with as many contents and styles, by Art-Inception and "
        f"LPIPS alex, pictures {as_they_are(short_side)}; lower is better"
    )
    lines = [
        f"ArtFID {value:.5g} = (1 + LPIPS {found.content:.4g}) x (1 + {of_sets} {fid:.5g}): {name}.",
        f"{protocol}.",
        found.meaning,
    ]
    if found.count < WIDTH:
        protocol += f". {FEW}"
        lines.append(f"{FEW}.")
    measures = tuple(Measure(column, (number,), higher_is_better=False) for column, number in columns.items())
    return Scores((name,), measures, protocol), "\n".join([*lines, *filter(None, notes)])
