"""ConsiStory on the demo model: a contact sheet by the template, and figures over many stories.

The small model shows where the method looks and what it leaves alone, not that subjects grow alike: it keeps its
colours out of the attention that ConsiStory shares. Its finest convolutions, which lie behind, read them from the noisy
picture itself. With the features of the last block that shares taken from the same picture in other colours, the
figure's colours followed by 5 to 8 %.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from importlib import import_module
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from harness.server import ComfyUIServer, Prompt

from .captions import PLACE_WORDS, SHAPE_WORDS
from .contact_sheet import contact_sheet
from .metrics import colour_distance, colours_inside, estimate, gram_distance
from .page import Table
from .run import Shot, changed, read_tensor, shoot_batch, slug, template
from .shapes import SHAPES
from .study import GUIDANCE, STEPS, Study, output_of
from .training.judge import PLACES, Judge, Verdict, load_judge, place_of
from .world import FREE_PALETTE, Scenes, draw, sample_content, sample_style

if TYPE_CHECKING:
    from semblance.host.demo_models import Topology

TEMPLATE = "consistory"
LORA = "semblance_demo_words.safetensors"
"""With it the attention to the shape's word lies on the figure, as in large models without one."""
SCENES = 4
SHEET_ROWS = 2
NOISE_SEED = 500
OPEN = "{subject}"
"""A scene that leaves the place open."""


@dataclass(frozen=True)
class Way:
    """One way to sample a story: what of the method is used."""

    name: str
    mode: str = "official"
    sharing: float = 1.0
    dropout: float = 0.5
    blend: float = 1.0
    injection: float = 0.8
    lora: bool = True

    @property
    def plain(self) -> bool:
        return not (self.sharing or self.injection)


BARE = Way("plain, without the LoRA", sharing=0.0, injection=0.0, lora=False)
PLAIN = Way("plain", sharing=0.0, injection=0.0)
OFFICIAL = Way("ConsiStory")
FAST = Way("fast", mode="fast")
NO_INJECTION = Way("without injection", injection=0.0)
NO_DROPOUT = Way("without dropout", dropout=0.0)
NO_BLEND = Way("without query blending", blend=0.0)
SHARING_ALONE = Way("sharing alone", dropout=0.0, blend=0.0, injection=0.0)
UNTAUGHT = Way("ConsiStory, without the LoRA", lora=False)
MAIN_WAYS = (PLAIN, OFFICIAL, FAST, SHARING_ALONE)
WAYS = (BARE, PLAIN, OFFICIAL, FAST, NO_INJECTION, NO_DROPOUT, NO_BLEND, SHARING_ALONE)


@dataclass(frozen=True)
class Story:
    """One subject in SCENES scenes, each at a place of its own or at one left open."""

    shape: int
    places: tuple[int, ...]
    """Indices into PLACES; none where places are left open."""
    seed: int

    @property
    def subject(self) -> str:
        return f"a {SHAPE_WORDS[SHAPES[self.shape]][0]}"

    @property
    def scenes(self) -> str:
        if not self.places:
            return "\n".join([OPEN] * SCENES)
        return "\n".join(PLACE_WORDS[PLACES[place]][0] for place in self.places)


@dataclass(frozen=True, eq=False)
class Told:
    """What was measured on stories: (stories,) each."""

    subject: Tensor
    """Distance in Delta E between the figure's colours in two images of a story, mean over its pairs."""
    features: Tensor
    """Distance between the correlations of the classifier's features inside the figure: texture and edge; the same."""
    background: Tensor
    """The distance between the colours of what is not the figure; the same."""
    layouts: Tensor
    """How differently the figures lie: 1 less the intersection over union of two, mean over a story's pairs; of
    stories that leave places open."""
    shape_right: Tensor
    """The share of a story's images that show the asked shape."""
    place_right: Tensor
    """The share whose figure stands where it was asked for; of stories with places."""
    mask: Tensor
    """Intersection over union of the mask that the run found with the figure; of runs with ConsiStory."""


def stories_of(count: int) -> list[Story]:
    """All shapes in turn, with noise of their own; every second leaves places open, each shape in every second run."""
    stories = []
    for number in range(count):
        places = random.Random(number).sample(range(len(PLACES)), SCENES)
        open_places = (number + number // len(SHAPES)) % 2
        stories.append(Story(number % len(SHAPES), () if open_places else tuple(places), NOISE_SEED + number))
    return stories


def tell_all(study: Study, stories: Sequence[Story], way: Way) -> Told:
    """Every story in one way, measured."""
    nodes: Any = import_module("nodes")
    model = study.demo.model
    if way.lora:
        (model,) = nodes.LoraLoaderModelOnly().load_lora_model_only(model, LORA, 1.0)
    return joined([measure(study.judge, story, *tell(study, model, story, way)) for story in stories])


@torch.inference_mode()
def tell(study: Study, model: Any, story: Story, way: Way, steps: int = STEPS) -> tuple[Tensor, Tensor | None]:
    """A story's pictures (SCENES, 3, 128, 128) in 0..1, and the subject's masks (SCENES, height, width) if any."""
    from semblance.attention.subjects.words import read_scenes, read_subjects
    from semblance.host.subjects.masks import subject_masks_of
    from semblance.host.subjects.tokens import encode_story
    from semblance.nodes.consistory import ConsiStory

    nodes: Any = import_module("nodes")
    positive, words = encode_story(study.demo.clip, read_subjects(story.subject), "", read_scenes(story.scenes))
    if not way.plain:
        model = output_of(ConsiStory.execute(model, words, **_settings(way), **ADVANCED))
    latent = {"samples": torch.zeros(SCENES, 4, 16, 16)}
    settings = (story.seed, steps, GUIDANCE, "euler", "normal", positive, study.prompt([""]), latent)
    (made,) = nodes.common_ksampler(model, *settings)
    pictures = study.demo.vae.decode(made["samples"]).movedim(-1, 1).clamp(0, 1)
    return pictures, None if way.plain else subject_masks_of(made)


ADVANCED = {
    "blend_until": 0.1,
    "inject_from": 0.1,
    "inject_until": 0.3334,
    "free_u": False,
    "dropout_seed": 0,
    "mask_use": "replace",
}


def _settings(way: Way) -> dict[str, Any]:
    return {
        "mode": way.mode,
        "anchors": 2,
        "sharing": way.sharing,
        "dropout": way.dropout,
        "query_blend": way.blend,
        "injection": way.injection,
    }


def joined(told: Sequence[Told]) -> Told:
    return Told(**{field.name: torch.cat([getattr(each, field.name) for each in told]) for field in fields(Told)})


@torch.no_grad()
def measure(judge: Judge, story: Story, pictures: Tensor, masks: Tensor | None = None) -> Told:
    """One story's pictures (images, 3, height, width)."""
    verdict = judge(pictures)
    figure = verdict.figure > 0
    first, second = (torch.tensor(rows) for rows in zip(*combinations(range(len(pictures)), 2), strict=True))
    inside, outside = (colours_inside(pictures, sign * verdict.figure) for sign in (1, -1))
    shape_right = verdict.shape.argmax(1) == story.shape
    layouts = 1 - _overlap(figure[first], figure[second]).mean()[None]
    place_right = (verdict.place.argmax(1) == torch.tensor(story.places or -1)).float().mean()[None]
    return Told(
        subject=colour_distance(inside[first], inside[second]).mean()[None],
        features=gram_distance(*(_inside(verdict, rows) for rows in (first, second))).mean()[None],
        background=colour_distance(outside[first], outside[second]).mean()[None],
        layouts=layouts[:0] if story.places else layouts,
        shape_right=shape_right.float().mean()[None],
        place_right=place_right if story.places else place_right[:0],
        mask=torch.zeros(0) if masks is None else _mask_overlap(masks, figure).mean()[None],
    )


def _inside(verdict: Verdict, rows: Tensor) -> Verdict:
    """The verdict on some pictures, with features of their figures alone, at equal weight whatever their size."""
    figure = (verdict.figure[rows] > 0).float()[:, None]
    levels = []
    for level in verdict.features:
        height, width = level.shape[-2:]
        inside = functional.adaptive_avg_pool2d(figure, (height, width))
        levels.append(level[rows] * (inside / inside.mean(dim=(2, 3), keepdim=True).clamp_min(1e-3)).sqrt())
    return replace(verdict, features=tuple(levels))


def _mask_overlap(masks: Tensor, figure: Tensor) -> Tensor:
    return _overlap(functional.interpolate(masks[:, None], figure.shape[-2:])[:, 0] > 0.5, figure)


def _overlap(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of boolean pictures (pictures, height, width): (pictures,)."""
    return (first & second).sum(dim=(1, 2)) / (first | second).sum(dim=(1, 2)).clamp_min(1)


def table(study: Study, count: int, ways: Sequence[Way] = WAYS) -> Table:
    """What each way does over so many stories; the first row holds the headings, the last what a drawer does."""
    stories = stories_of(count)
    told = {way.name: tell_all(study, stories, way) for way in ways}
    told["drawings of one subject"] = drawings(study.judge, count)
    return [["way", *HEADINGS], *([name, *_row(each)] for name, each in told.items())]


HEADINGS = {
    "subject, Delta E": "subject",
    "subject's features": "features",
    "background, Delta E": "background",
    "shape right": "shape_right",
    "place right": "place_right",
    "layouts differ, 0..1": "layouts",
    "mask on the figure, IoU": "mask",
}


def _row(told: Told) -> list[str]:
    values = [getattr(told, name) for name in HEADINGS.values()]
    return [str(estimate(value)) if len(value) else "-" for value in values]


def drawings(judge: Judge, count: int, seed: int = 31) -> Told:
    """Drawn stories as the judge measures them: the best there is."""
    scenes = drawn_stories(count, seed)
    pictures, places = draw(scenes).pictures.split(SCENES), place_of(scenes.content).split(SCENES)
    shapes = scenes.content.shape[::SCENES, 0].tolist()
    stories = [Story(shape, tuple(place.tolist()), 0) for shape, place in zip(shapes, places, strict=True)]
    return joined([measure(judge, story, shown) for story, shown in zip(stories, pictures, strict=True)])


def drawn_stories(count: int, seed: int) -> Scenes:
    """Runs of SCENES drawings of one subject: its shape, colours, texture and edge are kept, the rest is drawn anew."""
    generator = torch.Generator().manual_seed(seed)
    total = count * SCENES
    content, style = sample_content(total, generator, two_shapes=0.0), sample_style(total, generator)
    first = torch.arange(count).repeat_interleave(SCENES) * SCENES
    subject = style.take(first)
    shape = content.shape[first]
    kept = {f.name: getattr(subject, f.name) for f in fields(style) if f.name not in ("angle", "phase", "oklch")}
    grounds = _grounds_for(subject.oklch[:, 2, 0], generator)
    oklch = torch.cat([grounds, subject.oklch[:, 2:]], dim=1)
    free = torch.full((total,), FREE_PALETTE)
    mixed = replace(style, **{**kept, "oklch": oklch, "palette_name": free})
    return Scenes(replace(content, shape=shape), mixed)


def _grounds_for(lightness: Tensor, generator: torch.Generator) -> Tensor:
    """Two ground colours for each figure of this lightness, far enough from it: (figures, 2, 3)."""
    candidates = sample_style(8 * len(lightness), generator).oklch[:, :2].unflatten(0, (len(lightness), 8))
    apart = (candidates[:, :, 0, 0] - lightness[:, None]).abs()
    chosen = apart.clamp_max(0.28).argmax(dim=1)  # the first that is far enough, else the farthest
    return candidates[torch.arange(len(lightness)), chosen]


def sheet(server: ComfyUIServer, topology: Topology, output: Path) -> Path:
    """Stories in rows: plain, with ConsiStory, and what that took for the subject, over the HTTP API."""
    judge = load_judge()
    rows: list[list[Shot]] = []
    for number, story in enumerate(stories_of(2 * SHEET_ROWS)[::2], start=1):
        for way in (PLAIN, OFFICIAL):
            stem = f"consistory_{slug(topology)}_{number}_{slug(way.name)}"
            paths = [output / f"{stem}_{scene}.png" for scene in range(1, SCENES + 1)]
            masked = [] if way.plain else [path.with_stem(f"{path.stem}_mask") for path in paths]
            title = f"story {number}, {way.name}"
            shots = shoot_batch(server, title, _prompt(story, way, topology), paths, masked)
            rows.append(_captioned(judge, story, way.name, shots[:SCENES]))
            if masked:
                rows.append([Shot("its subject mask", shot.picture) for shot in shots[SCENES:]])
    return contact_sheet(rows, output / f"consistory_{slug(topology)}.png")


def _captioned(judge: Judge, story: Story, name: str, shots: Sequence[Shot]) -> list[Shot]:
    pictures = torch.cat([read_tensor(shot.picture) for shot in shots])
    with torch.no_grad():
        colours = colours_inside(pictures, judge(pictures).figure)
    notes = [
        f"{story.subject} {scene}\nsubject {colour_distance(one, colours[0]).item():.0f} from the first"
        for scene, one in zip(story.scenes.split("\n"), colours, strict=True)
    ]
    return [Shot(name, shot.picture, note) for shot, note in zip(shots, notes, strict=True)]


def _prompt(story: Story, way: Way, topology: Topology) -> Prompt:
    """The template on the demo model with its LoRA; the plain model makes no masks."""
    prompt = changed(template(TEMPLATE), _inputs(story, way, topology))
    if way.plain:
        prompt = {key: node for key, node in prompt.items() if node["class_type"] != "SemblanceSubjectMasks"}
    (loader,) = (key for key, node in prompt.items() if node["class_type"] == "SemblanceLoadDemo")
    (method,) = (node for node in prompt.values() if node["class_type"] == "SemblanceConsiStory")
    lora = {"lora_name": LORA, "strength_model": 1.0, "model": [loader, 0]}
    prompt["lora"] = {"class_type": "LoraLoaderModelOnly", "inputs": lora}
    method["inputs"]["model"] = ["lora", 0]
    return prompt


def _inputs(story: Story, way: Way, topology: Topology) -> dict[str, dict[str, Any]]:
    return {
        "Load Checkpoint": {"class_type": "SemblanceLoadDemo", "topology": topology},
        "SemblanceStoryPrompts": {"subjects": story.subject, "style": "", "scenes": story.scenes},
        "SemblanceConsiStory": _settings(way),
        "EmptyLatentImage": {"width": 128, "height": 128},
        "KSampler": {"seed": story.seed, "steps": STEPS, "cfg": GUIDANCE},
    }


CAPTION = (
    f"Two stories of one subject in four places, by the template {TEMPLATE} on the demo model with its LoRA: without "
    "ConsiStory, with it from the same noise, and where it took the subject to be. Under each picture: how far its "
    "figure's colours lie from those of the first (Delta E). They stay, for the small model keeps its colours out of "
    "the attention that is shared; the places and backgrounds stay, as they should."
)
TABLE_CAPTION = (
    "means with 95 % intervals. Subject and background: how far the colours of the figure, and of all else, lie "
    "apart in two images of a story. Layouts: 1 less the overlap of two figures where the prompt leaves places open. "
    "But where it is said, all rows are on the LoRA, so that they differ in the method alone. Colours do not grow "
    "alike, for the small model keeps them out of the attention that is shared; the last row is what would be right."
)
