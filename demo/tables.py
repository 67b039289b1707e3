"""The figures of the demo, many pictures a setting: made in a process of their own, beside the contact sheets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import consistory, instantstyle, reference_style, styledrop, styleid
from .page import Section, Table

if TYPE_CHECKING:
    from semblance.host.demo_models import Topology

STYLEID_TOPOLOGIES: tuple[Topology, ...] = ("SDXL", "Flux")  # SD 1.5's take six times as long
STORY_TOPOLOGY: Topology = "SDXL"  # there is no LoRA for SD 1.5


@dataclass(frozen=True)
class Extent:
    """How many pictures the figures are taken over."""

    per_reference: int
    styleid_pairs: int
    stories: int
    ways: tuple[consistory.Way, ...] = consistory.WAYS
    """Of sampling a story."""
    tunings: int = 0
    """References that StyleDrop is tuned on, a minute each."""
    styleid_topologies: tuple[Topology, ...] = STYLEID_TOPOLOGIES
    """Whose StyleID is drawn and measured."""
    reference_ways: tuple[reference_style.Way, ...] = reference_style.WAYS


QUICK = Extent(
    per_reference=1,
    styleid_pairs=6,
    stories=4,
    ways=consistory.MAIN_WAYS,
    styleid_topologies=STYLEID_TOPOLOGIES[:1],
    reference_ways=reference_style.MAIN_WAYS,
)
"""Beside the contact sheets, within five minutes in all."""
FULL = Extent(per_reference=4, styleid_pairs=16, stories=64, tunings=16)
"""As in docs/evaluation.md."""


def tables(topology: Topology, extent: Extent, output: Path) -> list[Section]:
    """What is measured on the demo model of one topology; `harness.library.use_library` comes first.

    StyleDrop's pictures are written into `output`, for each needs an adapter of its own.
    """
    from .study import ADAPTERS, Pairs, Study

    study = Study.open(topology, pairs=Pairs.draw(per_reference=extent.per_reference))
    pictures = f"{len(study.pairs)} pictures"
    made: list[tuple[str, str, Table]] = [
        ("words alone", f"{pictures}, {instantstyle.TEXT_CAPTION}", instantstyle.text_table(study))
    ]
    if topology == reference_style.TOPOLOGY:
        caption = f"{pictures}, {reference_style.TABLE_CAPTION}"
        made.append(("Reference Style", caption, reference_style.table(study, extent.reference_ways)))
    elif topology in ADAPTERS:
        made.append(("InstantStyle", f"{pictures}, {instantstyle.TABLE_CAPTION}", instantstyle.table(study)))
    if topology in extent.styleid_topologies:
        exact = Study.open(topology, styleid.DTYPE)
        caption = f"{extent.styleid_pairs} held-out pairs, {styleid.TABLE_CAPTION}"
        made.append(("StyleID", caption, styleid.table(exact, extent.styleid_pairs)))
    if topology == STORY_TOPOLOGY:
        caption = f"{extent.stories} stories, {consistory.TABLE_CAPTION}"
        made.append(("ConsiStory", caption, consistory.table(study, extent.stories, extent.ways)))
    sections = [Section(f"{topology} demo model, {method}", caption, table=table) for method, caption, table in made]
    for tuning in styledrop.TUNINGS:
        if topology == tuning.topology and extent.tunings:
            adapters = styledrop.Adapters.over(extent.tunings, tuning)
            caption = f"{styledrop.CAPTION} {extent.tunings} references, {styledrop.TABLE_CAPTION}"
            sheet, table = styledrop.sheet(adapters, output), styledrop.table(adapters)
            sections.append(Section(f"{topology} demo model, StyleDrop", caption, sheet, table))
    return sections
