"""StyleID on the demo models: a contact sheet by the template, and figures over many pairs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hosting.server import ComfyUIServer

from .captions import content_captions, full_captions
from .contact_sheet import contact_sheet
from .metrics import estimate, figure_overlap, gram_distance, palette_distance, texture_distance
from .page import Table
from .run import Shot, changed, read_tensor, save_tensor, shoot, template
from .study import Pairs, Study
from .world import Scenes, draw

if TYPE_CHECKING:
    from semblance.attention.host.demo_models import Topology

TEMPLATE = "styleid"
SHEET_ROWS = 4
STEPS = 50  # fewer bring the picture itself back less well
GAMMAS = (0.3, 0.5, 0.75, 0.9)
BATCH = 16


@dataclass(frozen=True)
class Way:
    """One way to paint the content: what of the method is used."""

    name: str
    gamma: float = 0.75
    strength: float = 1.0
    adain: float = 1.0
    temperature: float = 1.5


WAYS = (
    Way("sampled back", strength=0.0, adain=0.0),
    Way("AdaIN alone", strength=0.0),
    Way("keys and values alone", adain=0.0),
    Way("StyleID, gamma 0.75"),
    Way("StyleID, gamma 0.3", gamma=0.3),
)


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


def paint(study: Study, pairs: Pairs, ways: tuple[Way, ...], steps: int = STEPS) -> dict[str, Tensor]:
    """The contents in the styles of their pairs, in each way: (pictures, 3, 128, 128) in 0..1.

    The prompt names the content. With the authors' empty one the small model, whose few tokens hold little structure,
    draws another figure as soon as colours move.
    """
    from comfy.samplers import sampler_object
    from comfy_extras.nodes_custom_sampler import SamplerCustom

    from semblance.nodes.inversion import InvertImage
    from semblance.nodes.styleid import StyleID

    demo, empty = study.demo, study.prompt([""])
    captions = content_captions(pairs.asked)
    made: dict[str, list[Tensor]] = {way.name: [] for way in ways}
    with torch.inference_mode():
        for first in range(0, len(pairs), BATCH):
            rows = torch.arange(first, min(first + BATCH, len(pairs)))
            content, style = (
                {"samples": demo.vae.encode(draw(scenes.take(rows)).pictures.movedim(1, -1))}
                for scenes in (pairs.asked, pairs.references)
            )
            node = InvertImage.PREPARE_CLASS_CLONE({"hidden_inputs": {}})
            words = study.prompt([captions[row] for row in rows.tolist()])
            inverted = node.execute(demo.model, content, steps, "styleid", 1.0, False, style=style, text=words)
            for way in ways:
                preset = {"preset": "custom", "gamma": way.gamma, "temperature": way.temperature}
                patched, start, sigmas = StyleID.execute(
                    demo.model, inverted.result[0], inverted.result[2], preset, {"blocks": "family"},
                    way.strength, way.adain, "exact", 0.0, 1.0,
                ).result  # fmt: skip
                euler = sampler_object("euler")
                ran = SamplerCustom.execute(patched, False, 0, 1.0, words, empty, euler, sigmas, start)
                made[way.name].append(demo.vae.decode(ran[0]["samples"]).movedim(-1, 1).clamp(0, 1))
    return {name: torch.cat(batches) for name, batches in made.items()}


@torch.no_grad()
def measure(study: Study, pairs: Pairs, made: Tensor) -> Painted:
    """Compares with the content drawn in the style, and the figure with the content's."""
    ideal = draw(Scenes(pairs.asked.content, pairs.references.style)).pictures
    return Painted(
        palette_distance(made, ideal),
        texture_distance(made, ideal),
        gram_distance(study.judge(made), study.judge(ideal)),
        figure_overlap(study.judge, made, draw(pairs.asked)),
    )


def table(study: Study, count: int = 32) -> Table:
    """What each of WAYS does; the first row holds the headings, the second the contents as they are."""
    pairs = pairs_of(count)
    contents = {"the contents themselves": draw(pairs.asked).pictures}
    rows = [["way", "colours, Delta E", "texture, 0..1", "features", "figure kept, IoU"]]
    for name, made in (contents | paint(study, pairs, WAYS)).items():
        found = measure(study, pairs, made)
        rows.append(
            [name, *(str(estimate(value)) for value in (found.palette, found.texture, found.gram, found.overlap))]
        )
    return rows


def sheet(server: ComfyUIServer, topology: Topology, output: Path) -> Path:
    """Held-out pairs in rows: content, style, and each of WAYS, by the template over the HTTP API."""
    from .training.judge import load_judge

    pairs, judge = pairs_of(SHEET_ROWS), load_judge()
    rows: list[list[Shot]] = []
    for row in range(SHEET_ROWS):
        content, style = (scenes.take(torch.tensor([row])) for scenes in (pairs.asked, pairs.references))
        stem = f"styleid_{topology.replace(' ', '').replace('.', '').lower()}_{row + 1}"
        shots = [
            Shot(name, save_tensor(draw(scenes, 256).pictures[0], output / f"{stem}_{name}.png"), words)
            for name, scenes in (("content", content), ("style", style))
            for words in [full_captions(scenes)[0].replace(", ", ",\n", 1)]
        ]
        files = [server.add_input(shot.picture) for shot in shots]
        drawn = draw(content)
        ideal = draw(Scenes(content.content, style.style)).pictures
        for number, way in enumerate(WAYS):
            prompt = changed(template(TEMPLATE), _inputs(way, topology, *files, content_captions(content)[0]))
            shot = shoot(server, f"pair {row + 1}, {way.name}", prompt, output / f"{stem}_{number}.png")
            made = read_tensor(shot.picture)
            figures = (
                f"colours {palette_distance(made, ideal).item():.0f}, "
                f"texture {texture_distance(made, ideal).item():.2f},\n"
                f"figure {figure_overlap(judge, made, drawn).item():.2f}"
            )
            shots.append(Shot(way.name, shot.picture, figures))
        rows.append(shots)
    return contact_sheet(rows, output / f"styleid_{topology.replace(' ', '').replace('.', '').lower()}.png")


def _inputs(way: Way, topology: Topology, content: str, style: str, words: str) -> dict[str, dict[str, Any]]:
    (prompt,) = (number for number, node in template(TEMPLATE).items() if node["_meta"]["title"] == "Prompt")
    return {
        "Prompt": {"text": words},
        "Load Checkpoint": {"class_type": "SemblanceLoadDemo", "topology": topology},
        "Content picture": {"image": content},
        "Style picture": {"image": style},
        "Scale content": {"width": 128, "height": 128},
        "Scale style": {"width": 128, "height": 128},
        "SemblanceInvertImage": {"steps": STEPS, "check": False, "text": [prompt, 0]},
        "SemblanceStyleID": {
            "preset": "custom",
            "preset.gamma": way.gamma,
            "preset.temperature": way.temperature,
            "strength": way.strength,
            "adain": way.adain,
            "start_mode": "exact",
        },
    }


CAPTION = (
    f"Four held-out pairs, by the template {TEMPLATE} with a prompt that names the content, {STEPS} steps. Under each "
    "picture: the distance of its colours and texture from the content drawn in the style, and how much of the "
    "content's figure is kept."
)
TABLE_CAPTION = "Means over held-out pairs with 95 % intervals, against the content drawn in the style."
