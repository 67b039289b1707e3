"""Reference Style on the demo models: a contact sheet by the template, and figures over many pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.server import ComfyUIServer

from .captions import content_captions, shape_captions
from .contact_sheet import contact_sheet
from .metrics import Measures, estimate, measure
from .page import Table
from .probe import style_gained
from .run import Shot, changed, drawn, read_tensor, shoot, slug, template
from .study import NOISE_SEED, Pairs, Study, output_of
from .training.judge import load_judge
from .world import Scenes, draw

TEMPLATE = "reference_style_demo"
SHEET_ROWS = 4
TOLD = "with the reference's words"


@dataclass(frozen=True)
class Way:
    """One setting of Reference Style."""

    name: str
    preset: str = "auto"
    strength: float = 1.0
    numbers: tuple[tuple[str, Any], ...] = ()
    """Of the preset "custom"."""
    told: bool = True
    """Whether the reference has its own prompt, which names what it shows."""


SHARED = Way("auto")
UNTOLD = Way("auto, without the reference's words", told=False)
HALF = Way("auto at strength 0.5", strength=0.5)
WAYS = (SHARED, UNTOLD, HALF)


def with_way(study: Study, way: Way) -> Measures:
    """The asked shapes in the references' styles; the prompt leaves place and style open."""
    pairs, made = study.pairs, []
    captions = shape_captions(pairs.asked)
    for row in range(0, len(pairs), pairs.per_reference):
        model = styled(study, way, pairs.references.take(torch.tensor([row])))
        made.append(study.sample(captions[row : row + pairs.per_reference], NOISE_SEED + row, model))
    return measure(torch.cat(made), pairs.asked, pairs.references, study.judge)


@torch.inference_mode()
def styled(study: Study, way: Way, reference: Scenes) -> Any:
    """The MODEL that looks at one drawn reference."""
    from semblance.nodes.reference_style import ReferenceStyle

    latent = {"samples": study.demo.vae.encode(draw(reference).pictures.movedim(1, -1))}
    preset = {"preset": way.preset, **dict(way.numbers)}
    words = study.prompt(content_captions(reference)) if way.told else None
    where = ({"blocks": "preset"}, 0.0, 1.0, {"curve": "constant"}, 0)
    return output_of(ReferenceStyle.execute(study.demo.model, latent, preset, way.strength, *where, words))


def table(study: Study, ways: Sequence[Way] = WAYS) -> Table:
    """What each way does over the study's pairs; the first row holds the headings."""
    plain = study.plain()
    rows = [["setting", "style gained", "colours, Delta E", "texture, 0..1", "at the reference's place", "shape right"]]
    for name, found in [("plain", plain), *((way.name, with_way(study, way)) for way in ways)]:
        keys = ("palette", "texture", "place_leaked", "shape_right")
        values = [str(estimate(found[key], study.pairs.per_reference)) for key in keys]
        rows.append([name, f"{style_gained(found, plain):.0%}", *values])
    return rows


def ideal(study: Study) -> Tensor:
    """The asked contents drawn in the references' styles: (pictures, 3, 128, 128) in 0..1."""
    return draw(Scenes(study.pairs.asked.content, study.pairs.references.style)).pictures


def sheet(server: ComfyUIServer, output: Path) -> Path:
    """Held-out references in rows: the reference, the plain picture, and each of WAYS, over the HTTP API."""
    pairs, judge = Pairs.draw(SHEET_ROWS, 1), load_judge()
    rows: list[list[Shot]] = []
    for row in range(SHEET_ROWS):
        pair = pairs.take(torch.tensor([row]))
        (words,), (content,) = shape_captions(pair.asked), content_captions(pair.references)
        stem = f"reference_style_{row + 1}"
        shots = [drawn("reference", pair.references, output / f"{stem}_reference.png")]
        uploaded = server.add_input(shots[0].picture)
        for way in (Way("plain", strength=0.0), *WAYS):
            prompt = changed(template(TEMPLATE), _inputs(way, words, uploaded, content))
            shot = shoot(server, f"{words}, {way.name}", prompt, output / f"{stem}_{slug(way.name)}.png")
            found = measure(read_tensor(shot.picture), pair.asked, pair.references, judge)
            shots.append(Shot(way.name, shot.picture, f"{words}\n{_figures(found)}"))
        rows.append(shots)
    return contact_sheet(rows, output / "reference_style.png")


def _inputs(way: Way, words: str, picture: str, content: str) -> dict[str, dict[str, Any]]:
    style: dict[str, Any] = {"preset": way.preset, "strength": way.strength}
    return {
        "Prompt": {"text": words},
        "Prompt of the reference": {"text": content if way.told else words},
        "LoadImage": {"image": picture},
        "SemblanceReferenceStyle": style,
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
    "means with 95 % intervals, resampled by reference. Style gained: the share of plain's distance to the reference's "
    "style that is gone, over colours, texture and features. The reference's words name what it shows."
)
