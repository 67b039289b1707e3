"""StyleID on the demo models: a contact sheet by the template, and figures over many pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from harness.server import ComfyUIServer

from .captions import content_captions
from .contact_sheet import contact_sheet
from .metrics import estimate, figure_overlap, gram_distance, palette_distance, texture_distance
from .page import Table
from .run import Shot, changed, drawn, read_tensor, shoot, slug, template
from .study import Pairs, Study
from .training.judge import Judge, load_judge
from .world import Scenes, draw

if TYPE_CHECKING:
    from semblance.host.demo_models import Topology

TEMPLATE = "styleid"
SAMPLER = 3
"""The output of StyleID that gives its sampler."""
SHEET_ROWS = 4
STEPS = 50  # fewer bring the picture itself back less well
GAMMAS = (0.3, 0.5, 0.75, 0.9)
BATCH = 16
DTYPE = torch.float32  # bf16 cannot invert


@dataclass(frozen=True)
class Way:
    """One way to paint the content: what of the method is used."""

    name: str
    gamma: float = 0.75
    strength: float = 1.0
    adain: float = 1.0
    temperature: float = 1.5


BACK = Way("sampled back", strength=0.0, adain=0.0)
ADAIN = Way("AdaIN alone", strength=0.0)
KEYS_AND_VALUES = Way("keys and values alone", adain=0.0)
WAYS = (BACK, ADAIN, KEYS_AND_VALUES, Way("StyleID, gamma 0.75"), Way("StyleID, gamma 0.3", gamma=0.3))


@dataclass(frozen=True, eq=False)
class Painted:
    """What was measured on pictures painted in the style of others: (pictures,) each."""

    palette: Tensor
    texture: Tensor
    gram: Tensor
    overlap: Tensor
    """Of the figure seen with the figure drawn in the content."""


def pairs_of(count: int) -> Pairs:
    """Contents and styles of held-out drawings, one style to each content."""
    return Pairs.draw(count, 1, seed=1702)


def ideals(pairs: Pairs) -> Tensor:
    """The contents drawn in the styles of their pairs: the best there is, (pictures, 3, 128, 128) in 0..1."""
    return draw(Scenes(pairs.asked.content, pairs.references.style)).pictures


def paint(study: Study, pairs: Pairs, ways: Sequence[Way], steps: int = STEPS) -> dict[str, Tensor]:
    """The contents in the styles of their pairs, in each way: (pictures, 3, 128, 128) in 0..1.

    The prompt names the content. With the authors' empty one the small model, whose few tokens hold little structure,
    draws another figure as soon as colours move.
    """
    made: dict[str, list[Tensor]] = {way.name: [] for way in ways}
    for first in range(0, len(pairs), BATCH):
        batch = pairs.take(torch.arange(first, min(first + BATCH, len(pairs))))
        for name, pictures in _paint(study, batch, ways, steps):
            made[name].append(pictures)
    return {name: torch.cat(batches) for name, batches in made.items()}


@torch.inference_mode()
def _paint(study: Study, pairs: Pairs, ways: Sequence[Way], steps: int) -> list[tuple[str, Tensor]]:
    from comfy_extras.nodes_custom_sampler import SamplerCustom

    from semblance.attention.engine.scope import ScheduleWindow, Scope
    from semblance.attention.families import STYLEID
    from semblance.host.binding.model import add_patch
    from semblance.host.conditioning import Text
    from semblance.host.inversion.solver import convention_for, invert, retracing_sampler
    from semblance.host.inversion.styleid_start import family_for, form_for, start_of

    model, vae, count = study.demo.model, study.demo.vae, len(pairs)
    drawn = torch.cat([draw(scenes).pictures for scenes in (pairs.asked, pairs.references)])
    words, empty = study.prompt(content_captions(pairs.asked)), study.prompt([""])
    convention, latents = convention_for(model, "styleid"), vae.encode(drawn.movedim(1, -1))
    inverted = invert(model, latents, steps, convention, Text(words, empty)).trajectory
    content, style = inverted.select(range(count)), inverted.select(range(count, 2 * count))
    scope = Scope(family_for(model).weights(STYLEID), ScheduleWindow(0.0, 1.0))
    painted = []
    for way in ways:
        patch = form_for(model)(content, style, scope, way.gamma, way.temperature, way.strength)
        start, sampler = start_of(model, content, style, "exact", way.adain), retracing_sampler(content)
        settings = (0, 1.0, words, empty, sampler, start.sigmas, {"samples": start.latent})
        sampled: Any = SamplerCustom.execute(add_patch(model, patch), False, *settings)
        painted.append((way.name, vae.decode(sampled[0]["samples"]).movedim(-1, 1).clamp(0, 1)))
    return painted


@torch.no_grad()
def measure(judge: Judge, pairs: Pairs, made: Tensor) -> Painted:
    """Compares with the content drawn in the style, and the figure with the content's."""
    ideal = ideals(pairs)
    return Painted(
        palette_distance(made, ideal),
        texture_distance(made, ideal),
        gram_distance(judge(made), judge(ideal)),
        figure_overlap(judge, made, draw(pairs.asked)),
    )


def table(study: Study, count: int) -> Table:
    """What each of WAYS does; the first row holds the headings, the next two what it lies between."""
    pairs = pairs_of(count)
    drawn = {"the contents themselves": draw(pairs.asked).pictures, "the contents drawn in the style": ideals(pairs)}
    rows = [["way", "colours, Delta E", "texture, 0..1", "features", "figure kept, IoU"]]
    for name, made in (drawn | paint(study, pairs, WAYS)).items():
        found = measure(study.judge, pairs, made)
        values = (found.palette, found.texture, found.gram, found.overlap)
        rows.append([name, *(str(estimate(value)) for value in values)])
    return rows


def sheet(server: ComfyUIServer, topology: Topology, output: Path) -> Path:
    """Held-out pairs in rows: content, style, and each of WAYS, by the template over the HTTP API."""
    pairs, judge = pairs_of(SHEET_ROWS), load_judge()
    rows: list[list[Shot]] = []
    for row in range(SHEET_ROWS):
        pair = pairs.take(torch.tensor([row]))
        stem = f"styleid_{slug(topology)}_{row + 1}"
        shown = (("content", pair.asked), ("style", pair.references))
        shots = [drawn(name, scene, output / f"{stem}_{name}.png") for name, scene in shown]
        content, style = (server.add_input(shot.picture) for shot in shots)
        for way in WAYS:
            prompt = changed(
                template(TEMPLATE), _inputs(way, topology, content, style, content_captions(pair.asked)[0])
            )
            shot = shoot(server, f"pair {row + 1}, {way.name}", prompt, output / f"{stem}_{slug(way.name)}.png")
            shots.append(Shot(way.name, shot.picture, _figures(measure(judge, pair, read_tensor(shot.picture)))))
        rows.append(shots)
    return contact_sheet(rows, output / f"styleid_{slug(topology)}.png")


def _figures(found: Painted) -> str:
    return (
        f"colours {found.palette.item():.0f}, texture {found.texture.item():.2f},\n"
        f"figure kept {found.overlap.item():.2f}"
    )


def _inputs(way: Way, topology: Topology, content: str, style: str, words: str) -> dict[str, dict[str, Any]]:
    numbers = {node["_meta"]["title"]: number for number, node in template(TEMPLATE).items()}
    return {
        "Prompt": {"text": words},
        "Load Checkpoint": {"class_type": "SemblanceLoadDemo", "topology": topology},
        "Content picture": {"image": content},
        "Style picture": {"image": style},
        "Scale content": {"width": 128, "height": 128},
        "Scale style": {"width": 128, "height": 128},
        "SemblanceInvertImage": {"steps": STEPS, "check": False, "text": [numbers["Prompt"], 0]},
        "SemblanceStyleID": {
            "preset": "custom",
            "preset.gamma": way.gamma,
            "preset.temperature": way.temperature,
            "strength": way.strength,
            "adain": way.adain,
            "start_mode": "exact",
        },
        "SamplerCustom": {"sampler": [numbers["StyleID"], SAMPLER]},  # a flow model takes no other
    }


CAPTION = (
    f"Four held-out pairs, by the template {TEMPLATE} with a prompt that names the content, {STEPS} steps. Under each "
    "picture: the distance of its colours and texture from the content drawn in the style, and how much of the "
    "content's figure is kept."
)
TABLE_CAPTION = (
    "means with 95 % intervals, against the content drawn in the style. Even that one's figure is not wholly the "
    "content's: wobbly, soft and outlined edges are style."
)
