"""The figures of the demo, many pictures a setting: made beside the contact sheets, in a process a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import instantstyle, styleid
from .page import Section, Table

if TYPE_CHECKING:
    from semblance.attention.host.demo_models import Topology

STYLEID_TOPOLOGY: Topology = "SDXL"  # SD 1.5's take six times as long
STYLEID_PAIRS = 16


def tables(topology: Topology) -> list[Section]:
    """What is measured on the demo model of one topology; `hosting.library.use_library` comes first."""
    from .study import Study

    study = Study.open(topology)
    made: list[tuple[str, str, Table]] = [
        (f"{topology} demo model, words alone", instantstyle.TEXT_CAPTION, instantstyle.text_table(study)),
        (f"{topology} demo model, InstantStyle", instantstyle.TABLE_CAPTION, instantstyle.table(study)),
    ]
    if topology == STYLEID_TOPOLOGY:
        exact = Study.open(topology, styleid.DTYPE)
        caption = f"{STYLEID_PAIRS} held-out pairs: {styleid.TABLE_CAPTION}"
        made.append((f"{topology} demo model, StyleID", caption, styleid.table(exact, STYLEID_PAIRS)))
    return [Section(title, caption, table=table) for title, caption, table in made]
