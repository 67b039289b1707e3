"""InstantStyle on the demo models: a contact sheet by the template, and figures over many pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from harness.server import ComfyUIServer

from .captions import content_captions, full_captions, shape_captions
from .contact_sheet import contact_sheet
from .metrics import Measures, estimate, measure
from .probe import LEAK_KEYS, style_table
from .run import Shot, changed, drawn, in_the_style_of, read_tensor, shoot, slug, template
from .study import ADAPTERS, Pairs, Setting, Study
from .training.judge import load_judge
from .world import draw

if TYPE_CHECKING:
    from semblance.host.demo_models import Topology

TEMPLATE = "instantstyle_demo"
SHEET_ROWS = 4
SETTINGS = (
    Setting("all blocks", "all"),
    Setting("all blocks, content subtracted", "all", subtract=0.5),
    Setting("style blocks", "style"),
)


def sheet(server: ComfyUIServer, topology: Topology, output: Path) -> Path:
    """Held-out references in rows: the reference, the plain picture, and each of SETTINGS, over the HTTP API."""
    pairs, judge = Pairs.draw(SHEET_ROWS, 1), load_judge()
    rows: list[list[Shot]] = []
    for row in range(SHEET_ROWS):
        pair = pairs.take(torch.tensor([row]))
        (words,), (content,) = shape_captions(pair.asked), content_captions(pair.references)
        stem = f"{slug(topology)}_{row + 1}"
        shots = [drawn("reference", pair.references, output / f"{stem}_reference.png")]
        styled = in_the_style_of(server.add_input(shots[0].picture), template(TEMPLATE))
        for setting in (Setting("plain", strength=0.0), *SETTINGS):
            prompt = changed(styled, _inputs(setting, topology, words, content))
            shot = shoot(server, f"{words}, {setting.name}", prompt, output / f"{stem}_{slug(setting.name)}.png")
            found = measure(read_tensor(shot.picture), pair.asked, pair.references, judge)
            shots.append(Shot(setting.name, shot.picture, f"{words}\n{_figures(found)}"))
        rows.append(shots)
    return contact_sheet(rows, output / f"instantstyle_{slug(topology)}.png")


def table(study: Study) -> list[list[str]]:
    """What SETTINGS do over the study's pairs; the first row holds the headings."""
    found = {"plain": study.plain(), **{setting.name: study.with_setting(setting) for setting in SETTINGS}}
    return style_table(found, LEAK_KEYS, study.pairs.per_reference)


def text_table(study: Study) -> list[list[str]]:
    """How well the demo model draws what it is told, with no reference at all."""
    asked = study.pairs.asked
    made = study.sample(full_captions(asked))
    found = measure(made, asked, asked, study.judge)
    chance = measure(draw(study.pairs.references).pictures, asked, asked, study.judge)
    heads = ["prompt alone", "shape right", "place right", "colours, Delta E", "texture, 0..1"]
    names = ("shape_right", "place_right", "palette", "texture")
    return [heads] + [
        [what, *(str(estimate(measures[name])) for name in names)]
        for what, measures in (("the demo model", found), ("another drawing", chance))
    ]


def _inputs(setting: Setting, topology: Topology, words: str, content: str) -> dict[str, dict[str, Any]]:
    return {
        "SemblanceLoadDemo": {"topology": topology},
        "SemblanceLoadAdapter": {"file": ADAPTERS[topology]},
        "Prompt": {"text": words},
        "SemblanceSubtractContent": {"text": content, "strength": setting.subtract},
        "SemblanceInstantStyle": {"blocks": setting.blocks, "strength": setting.strength},
    }


def _figures(found: Measures) -> str:
    right = "shape right" if found["shape_right"].item() else "shape wrong"
    place = "the reference's place" if found["place_leaked"].item() else "a place of its own"
    return f"colours {found['palette'].item():.0f}, {right},\n{place}"


CAPTION = (
    f"Four held-out references, by the template {TEMPLATE}. The prompt names a shape and leaves its place open. Under "
    "each picture: the distance of its colours (Delta E) from those of the reference, and whether the shape is the "
    "asked one and stands where the reference's does."
)
TABLE_CAPTION = (
    "means with 95 % intervals, resampled by reference. Style gained: the share of plain's "
    "distance to the reference's style that is gone, over colours, texture and features. The prompt leaves the place "
    "open: that the shape stands where the reference's does is content that came through."
)
TEXT_CAPTION = (
    "means with 95 % intervals: colours and texture against the drawing the caption "
    "describes. Another drawing is what chance gives."
)
