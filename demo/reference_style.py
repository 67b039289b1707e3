"""Reference Style on the demo's Flux-like model: a contact sheet by the template, and figures over many pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from harness.server import ComfyUIServer

from .captions import content_captions
from .contact_sheet import contact_sheet
from .metrics import Measures, measure
from .page import Table
from .probe import PLACE_KEYS, style_table
from .run import Shot, changed, drawn, in_the_style_of, read_tensor, shoot, slug, template
from .study import Pairs, Study, output_of
from .training.judge import load_judge
from .training.sheets import save_picture
from .world import PICTURE_SIZE, Scenes, draw

if TYPE_CHECKING:
    from semblance.host.demo_models import Topology

TOPOLOGY: Topology = "Flux"
TEMPLATE = "reference_style_demo"
SHEET_ROWS = 4


@dataclass(frozen=True)
class Way:
    """How Reference Style is set; `told` gives the reference words of its own, which name what it shows."""

    name: str
    weight: int = 4
    """How many times the reference counts."""
    strength: float = 1.0
    told: bool = True
    side: int = PICTURE_SIZE
    """Pixels of the reference."""


ONCE = Way("weight 1", weight=1)
LARGE = Way("weight 1, of 256 pixels", weight=1, side=2 * PICTURE_SIZE)
HALF = Way("weight 4, strength 0.5", strength=0.5)
FOUR_TIMES = Way("weight 4")
UNTOLD = Way("weight 4, without its words", told=False)
WAYS = (ONCE, LARGE, HALF, FOUR_TIMES, UNTOLD)
MAIN_WAYS = (FOUR_TIMES,)
SIDES = {way.side for way in WAYS}


@torch.inference_mode()
def styled(study: Study, way: Way, reference: Scenes) -> Any:
    """The MODEL that looks at one drawn reference."""
    from semblance.nodes.reference_style import ReferenceStyle

    latent = {"samples": study.demo.vae.encode(draw(reference, way.side).pictures.movedim(1, -1))}
    words = study.prompt(content_captions(reference)) if way.told else None
    constant = {"curve": "constant"}
    return output_of(
        ReferenceStyle.execute(
            *(study.demo.model, latent, {"preset": "auto"}, way.strength, {"blocks": "preset"}, 0.0, 1.0, constant, 0),
            reference_weight=way.weight,
            reference_prompt=words,
        )
    )


def plain(study: Study) -> Measures:
    """The asked figures at their places with no reference, judged against the references' styles."""
    return study.judged(study.sample(content_captions(study.pairs.asked)))


def with_way(study: Study, way: Way) -> Measures:
    """The asked figures at their places, in the references' styles."""
    return study.in_styles(content_captions(study.pairs.asked), lambda reference: styled(study, way, reference))


def table(study: Study, ways: Sequence[Way] = WAYS) -> Table:
    """What each of `ways` does over the study's pairs; the first row holds the headings."""
    found = {"plain": plain(study), **{way.name: with_way(study, way) for way in ways}}
    return style_table(found, PLACE_KEYS, study.pairs.per_reference)


def sheet(server: ComfyUIServer, output: Path) -> Path:
    """Held-out references in rows: the reference, the plain picture, and each of WAYS, over the HTTP API."""
    pairs, judge = Pairs.draw(SHEET_ROWS, 1), load_judge()
    rows: list[list[Shot]] = []
    for row in range(SHEET_ROWS):
        pair = pairs.take(torch.tensor([row]))
        (words,), (content,) = content_captions(pair.asked), content_captions(pair.references)
        stem = f"reference_style_{row + 1}"
        shots = [drawn("reference", pair.references, output / f"{stem}_reference.png")]
        references = {side: _given(server, pair.references, side, output / f"{stem}_{side}.png") for side in SIDES}
        for way in (Way("plain", strength=0.0), *WAYS):
            inputs = {
                "Prompt": {"text": words},
                "What the style picture shows": {"text": content},
                "SemblanceReferenceStyle": {"strength": way.strength, "reference_weight": way.weight},
            }
            prompt = changed(in_the_style_of(references[way.side], template(TEMPLATE)), inputs)
            asked = prompt if way.told else _untold(prompt)
            shot = shoot(server, f"{words}, {way.name}", asked, output / f"{stem}_{slug(way.name)}.png")
            found = measure(read_tensor(shot.picture), pair.asked, pair.references, judge)
            note = f"{words}\ncolours {found['palette'].item():.0f}, texture {found['texture'].item():.2f}"
            shots.append(Shot(way.name, shot.picture, note))
        rows.append(shots)
    return contact_sheet(rows, output / "reference_style.png")


def _given(server: ComfyUIServer, scene: Scenes, side: int, path: Path) -> str:
    """A drawing of so many pixels among the server's inputs."""
    save_picture(draw(scene, side).pictures[0], path)
    return server.add_input(path)


def _untold(prompt: dict[str, Any]) -> dict[str, Any]:
    """Without what is connected to the reference's prompt."""
    return {
        number: {
            **node,
            "inputs": {name: value for name, value in node["inputs"].items() if name != "reference_prompt"},
        }
        for number, node in prompt.items()
    }


CAPTION = (
    f"Four held-out references, by the template {TEMPLATE}. The prompt names a figure and its place. Under each "
    "picture: the distances of its colours (Delta E) and its texture from those of the reference."
)
TABLE_CAPTION = (
    "means with 95 % intervals, resampled by reference. Style gained: the share of plain's distance to the "
    "reference's style that is gone, over colours, texture and features."
)
