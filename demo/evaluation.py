"""Scores in the graph, on the demo model: pictures scored and picked, and strengths compared, by the templates."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from harness.server import ComfyUIServer, Prompt

from .captions import shape_captions
from .page import Section, Table
from .run import changed, drawn, follow, in_the_style_of, shown_by, slug, template
from .study import ADAPTERS, STEPS, Pairs

if TYPE_CHECKING:
    from semblance.host.demo_models import Topology

NOISES = 6
"""Pictures of each strength."""


def sections(server: ComfyUIServer, topology: Topology, output: Path) -> Iterator[Section]:
    """The sheet of Pick Images; then the grid of Picture Grid, and the means and intervals of Score Table."""
    pair = Pairs.draw(1, 1).take(torch.tensor([0]))
    (words,), picture = shape_captions(pair.asked), output / f"{slug(topology)}_evaluation_reference.png"
    drawn("reference", pair.references, picture)
    changes = {
        "SemblanceLoadDemo": {"topology": topology},
        "SemblanceLoadAdapter": {"file": ADAPTERS[topology]},
        "Prompt": {"value": words},
        "KSampler": {"steps": STEPS},
    }
    style = server.add_input(picture)
    pick, compare = (
        changed(in_the_style_of(style, template(name)), changes) for name in ("score_and_pick", "compare_strengths")
    )
    yield _picked(server, pick, topology, output)
    yield _compared(server, _by_rows(compare), topology, output)


def _picked(server: ComfyUIServer, prompt: Prompt, topology: Topology, output: Path) -> Section:
    history, _ = follow(server, "CLIP Score and Pick Images", prompt)
    (sheet,) = shown_by(server, history, prompt, "SemblancePickImages")
    picture = Path(shutil.copyfile(sheet, output / f"picks_{slug(topology)}.png"))
    return Section(f"CLIP Score and Pick Images, {topology} demo model", PICKED, picture)


def _compared(server: ComfyUIServer, prompt: Prompt, topology: Topology, output: Path) -> Section:
    history, _ = follow(server, "Picture Grid and Score Table", prompt)
    (grid,) = shown_by(server, history, prompt, "SemblancePictureGrid")
    picture = Path(shutil.copyfile(grid, output / f"strengths_{slug(topology)}.png"))
    (file,) = [path for path in shown_by(server, history, prompt, "SemblanceScoreTable") if path.suffix == ".csv"]
    title = f"Picture Grid and Score Table, {topology} demo model"
    return Section(title, COMPARED, picture, table_of(file))


def table_of(file: Path) -> Table:
    """The means of Score Table's file with their intervals; the first row holds the headings."""
    with file.open(encoding="utf-8-sig", newline="") as opened:
        lines = list(csv.DictReader(opened))
    names = [name for name in lines[0] if name not in ("scores", "what", "row", "protocol")]
    found: dict[str, dict[str, Mapping[str, str]]] = {}
    for line in lines:
        found.setdefault(line["scores"], {})[line["what"]] = line
    rows = [[label, *(_estimate(kinds, name) for name in names)] for label, kinds in found.items()]
    return [["strength", *names], *rows]


def _estimate(kinds: Mapping[str, Mapping[str, str]], name: str) -> str:
    mean, low, high = (float(kinds[kind][name]) for kind in ("mean", "95 % from", "95 % to"))
    return f"{mean:.3g} ({low:.3g} to {high:.3g})"


def _by_rows(prompt: Prompt) -> Prompt:
    """Each strength as a row: on a wide page more pictures have room beside each other."""
    list_of_strengths = next(
        node["inputs"]["column_captions"] for node in prompt.values() if node["class_type"] == "SemblancePictureGrid"
    )
    grid: dict[str, Any] = {"row_captions": list_of_strengths, "column_captions": "", "order": "row by row"}
    return changed(prompt, {"SemblancePictureGrid": grid, "EmptyLatentImage": {"batch_size": NOISES}})


PICKED = (
    "Eight pictures by the template score_and_pick. Under each: the cosine of its CLIP embedding with that of the "
    "prompt (text) and with that of the style picture (style), by the demo model's own encoders. In frames: the two "
    "best by text among those whose style is above the floor."
)
COMPARED = (
    f"{NOISES} pictures at each strength, by the template compare_strengths: the same cosines under each, and their "
    "means with 95 % intervals, resampled by picture, from the file of Score Table. All pictures have one reference: "
    "what holds for it need not hold for others."
)
