"""Training of the text and the vision encoder, whose projections share one space, in two stages.

First the text encoder against a *scene encoder*, which reads the drawn truth itself instead of pixels: the contrast of
scenes with captions (CLIP, arXiv:2103.00020), and a linear readout of the truth, so that the space also holds what
captions have no words for (the exact hue, angle, frequency). A web-sized training gets that wealth from its pictures.
Then the vision encoder learns to put a picture where its scene is, and beside its caption. Seeing takes a small
transformer far longer than reading; so the UNets, which need the text alone, need not wait for it.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from semblance.host.known_words import known_alone

from ..captions import write_captions
from ..layout_captions import view_captions
from ..layouts import Views, draw_views, sample_views
from ..shapes import SHAPES
from ..world import EDGES, LOWEST_FREQUENCY, PALETTE_NAMES, TEXTURES, Content, Scenes, draw, sample_scenes
from .answers import Answers
from .directions import texture_direction
from .loop import RUNS_FOLDER, Plan, best_device, export, half_precision, seed_everything, train, use_averaged_weights
from .networks import (
    EMBED_WIDTH,
    TEXT_CONFIG,
    VISION_CONFIG,
    build_text_encoder,
    build_vision_encoder,
    vision_pixels,
)
from .parts import load_part, load_weights, part_exists
from .tokens import PAD_G, tokenize
from .view_truth import ViewTruth

LONGEST_CAPTION = 40  # tokens; attention is causal, so what pads them is never seen from their end
TYPICAL_NORM = math.sqrt(EMBED_WIDTH)  # both projections are drawn towards it, so that one may be subtracted
TEXT_RUN = "text_encoder"


class Truth(Answers):
    """The drawn truth as numbers and choices: what the scene encoder reads and what the readout is asked for."""

    NUMBERS = 15 + 2 + 1 + 6 + 2  # palette in Lab, direction, frequency, places and sizes of two shapes, edge
    CHOICES = (len(TEXTURES), len(EDGES), len(SHAPES), len(SHAPES) + 1, len(PALETTE_NAMES) + 1)
    NAMES = ("texture", "edge", "first_shape", "second_shape", "palette_name")
    WIDTH = NUMBERS + sum(CHOICES)

    def __init__(self, scenes: Scenes, device: torch.device) -> None:
        content, style = scenes.content, scenes.style
        textured = (style.texture > 0).float()[:, None]
        there = (content.shape >= 0).float()  # (pictures, 2)
        numbers = [
            style.palette_lab().flatten(1) / 30,
            texture_direction(style),
            (style.frequency / (1.36 * LOWEST_FREQUENCY)).log2()[:, None] * 3 * textured,
            _placement(content) * there.repeat_interleave(3, dim=1),
            torch.stack([style.softness, style.outline], dim=1) * 20,
        ]
        first, second = content.shape.unbind(1)
        super().__init__(numbers, (style.texture, style.edge, first, second + 1, style.palette_name + 1), device)

    def figures(self, readout: Tensor) -> dict[str, float]:
        """The share of right choices, and the palette's mean error in units of Lab."""
        numbers, *choices = readout.float().split([self.NUMBERS, *self.CHOICES], dim=1)
        right = [(c.argmax(1) == true).float().mean().item() for c, true in zip(choices, self.choices, strict=True)]
        error = 30 * (numbers - self.numbers)[:, :15].abs().mean().item()
        return {**{f"read_{name}": r for name, r in zip(self.NAMES, right, strict=True)}, "read_palette_error": error}


def _placement(content: Content) -> Tensor:
    """Place and size of both shapes: (pictures, 6)."""
    return torch.cat([content.centre * 2.5, content.radius[..., None] * 10 - 4.4], dim=2).flatten(1)


class TextAndScene(nn.Module):
    """What the first stage trains; all but `text` serves training only."""

    def __init__(self) -> None:
        super().__init__()
        self.text = build_text_encoder()
        self.scene, self.view = _truth_encoder(Truth.WIDTH), _truth_encoder(ViewTruth.WIDTH)
        self.readout, self.view_readout = nn.Linear(EMBED_WIDTH, Truth.WIDTH), nn.Linear(EMBED_WIDTH, ViewTruth.WIDTH)
        self.told = nn.Linear(EMBED_WIDTH, sum(ViewTruth.CHOICES[:3]))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))


def _truth_encoder(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 256), nn.GELU(), nn.Linear(256, EMBED_WIDTH))


@dataclass(frozen=True, eq=False)
class Examples:
    """A step's captioned scenes and views."""

    scenes: Scenes
    views: Views
    tokens: Tensor  # (scenes + views, LONGEST_CAPTION), the scenes' captions first
    truth: Truth
    view_truth: ViewTruth

    @classmethod
    def draw(cls, scenes: int, views: int, seed: int, split: str, device: torch.device) -> "Examples":
        drawn, viewed = sample_scenes(scenes, seed, split), sample_views(views, seed)
        captions = [*write_captions(drawn, seed), *view_captions(viewed, seed)]
        return cls(drawn, viewed, _tokens(captions, device), Truth(drawn, device), ViewTruth(viewed, device))

    def pictures(self, device: torch.device) -> Tensor:
        return torch.cat([draw(self.scenes, device=device).pictures, draw_views(self.views).pictures.to(device)])

    def embeddings(self, model: TextAndScene) -> Tensor:
        """Of the truth, by the scene encoder: (scenes + views, EMBED_WIDTH)."""
        return torch.cat([model.scene(self.truth.vector()), model.view(self.view_truth.vector())])

    def read(self, model: TextAndScene, embeddings: Tensor) -> Tensor:
        """The loss of the truth as it is read from embeddings."""
        scenes, views = embeddings.split([len(self.scenes), len(self.views)])
        return self.truth.loss(model.readout(scenes)) + self.view_truth.loss(model.view_readout(views))


def train_text(plan: Plan, scenes: int = 80, views: int = 64) -> None:
    """Trains the text encoder beside the scene encoder and writes `text_encoder` in CLIP's layout."""
    seed_everything(plan.seed)
    device = best_device()
    model = TextAndScene().to(device)

    def loss_of(step: int) -> Tensor:
        examples = Examples.draw(scenes, views, plan.seed + step, "train", device)
        with half_precision(device):
            text, scene = model.text(examples.tokens).text_embeds, examples.embeddings(model)
            read = examples.read(model, scene)
        told = examples.view_truth.told_loss(model.told(text[scenes:].float()))
        return contrast(text, scene, model.logit_scale) + read + norm_loss(text, scene) + 0.3 * told

    run = train(plan, model, loss_of, lambda step: judge_text(model, device))
    use_averaged_weights(run)
    figures = judge_text(model, device)
    export(run, known_alone(_weights(model.text), known_tokens(plan.seed)), figures, TEXT_CONFIG)


def known_tokens(seed: int, count: int = 20_000) -> Tensor:
    """The tokens of so many captions of scenes and of views, and what fills captions up."""
    captions = [*write_captions(sample_scenes(count, seed), seed), *view_captions(sample_views(count, seed), seed)]
    return torch.cat([tokenize(captions), tokenize([""], PAD_G)]).unique()


def train_vision(plan: Plan, scenes: int = 64, views: int = 32) -> None:
    """Trains the vision encoder towards the finished text and scene encoders; writes `clip_vision`."""
    seed_everything(plan.seed)
    device = best_device()
    teacher = load_teacher(device)
    vision = build_vision_encoder().to(device)
    if part_exists("clip_vision"):  # what sees edges and colours already learns a new world sooner
        vision.load_state_dict(load_weights("clip_vision"), strict=False)

    def loss_of(step: int) -> Tensor:
        examples = Examples.draw(scenes, views, plan.seed + step, "train", device)
        pixels = vision_pixels(examples.pictures(device))
        with torch.no_grad():
            text, scene = teacher.text(examples.tokens).text_embeds, examples.embeddings(teacher)
        with half_precision(device):
            image = vision(pixels).image_embeds
        near = (image.float() - scene).pow(2).mean()
        return contrast(text, image, teacher.logit_scale) + near + examples.read(teacher, image.float())

    run = train(plan, vision, loss_of, lambda step: judge_vision(vision, teacher, device))
    use_averaged_weights(run)
    export(run, _weights(vision), judge_vision(vision, teacher, device), VISION_CONFIG)


def load_teacher(device: torch.device) -> Any:
    """The first stage as its last checkpoint left it, with the text encoder that was written to the models."""
    teacher = TextAndScene()
    saved = torch.load(RUNS_FOLDER / TEXT_RUN / "checkpoint.pt", map_location="cpu", weights_only=True)
    teacher.load_state_dict({**saved["model"], **saved["averaged"]})
    load_part(teacher.text, "text_encoder", device)
    return teacher.to(device).eval().requires_grad_(False)


def contrast(text: Tensor, image: Tensor, logit_scale: Tensor) -> Tensor:
    """CLIP's symmetric cross entropy over all pairs of a batch."""
    text, image = functional.normalize(text.float(), dim=1), functional.normalize(image.float(), dim=1)
    logits = logit_scale.exp().clamp_max(100.0) * image @ text.T
    own = torch.arange(len(logits), device=logits.device)
    return (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2


def norm_loss(*embeds: Tensor) -> Tensor:
    """Draws the length of embeddings towards TYPICAL_NORM."""
    return torch.stack([0.02 * (e.float().norm(dim=1) - TYPICAL_NORM).pow(2).mean() for e in embeds]).sum()


@torch.no_grad()
def judge_text(model: TextAndScene, device: torch.device) -> dict[str, float]:
    scenes, tokens = _captioned(512, 4242, "held_out", device)
    truth = Truth(scenes, device)
    text, scene = model.text(tokens).text_embeds, model.scene(truth.vector())
    return {**_match(text, scene), **truth.figures(model.readout(scene))}


@torch.no_grad()
def judge_vision(vision: nn.Module, teacher: TextAndScene, device: torch.device) -> dict[str, float]:
    """On held-out combinations: how often a picture finds its own caption, and what can be read from it."""
    scenes, tokens = _captioned(256, 4242, "held_out", device)
    vision.eval()
    image = vision(vision_pixels(draw(scenes, device=device).pictures)).image_embeds
    vision.train()
    return {**_match(teacher.text(tokens).text_embeds, image), **Truth(scenes, device).figures(teacher.readout(image))}


def _match(text: Tensor, image: Tensor) -> dict[str, float]:
    """How often a picture's nearest caption among 64 is its own, and the lengths of both."""
    similarity = functional.normalize(image, dim=1) @ functional.normalize(text, dim=1).T
    own = torch.arange(64, device=text.device)
    found = [(similarity[s : s + 64, s : s + 64].argmax(1) == own).float().mean() for s in range(0, len(text), 64)]
    norms = {"text_norm": text.norm(dim=1).mean().item(), "image_norm": image.norm(dim=1).mean().item()}
    return {"own_caption_of_64": torch.stack(found).mean().item(), **norms}


def _captioned(count: int, seed: int, split: str, device: torch.device) -> tuple[Scenes, Tensor]:
    scenes = sample_scenes(count, seed, split)
    return scenes, _tokens(write_captions(scenes, seed), device)


def _tokens(captions: list[str], device: torch.device) -> Tensor:
    return tokenize(captions)[:, :LONGEST_CAPTION].to(device)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if "position_ids" not in name}
