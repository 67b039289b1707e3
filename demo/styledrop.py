"""StyleDrop on the demo model: adapters tuned on one drawing each, what the two scales do, and a round of feedback.

`python -m demo.tune` prints the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .captions import PLACE_WORDS, SHAPE_WORDS, content_captions, shape_captions
from .contact_sheet import contact_sheet
from .metrics import Measures
from .page import Table
from .probe import LEAK_KEYS, PLACE_KEYS, style_table
from .run import Shot, slug
from .study import ADAPTERS, GUIDANCE, NOISE_SEED, Pairs, Setting, Study
from .training.sheets import save_picture
from .world import Scenes, draw

if TYPE_CHECKING:
    from semblance.attention.adapters.style_adapter import StyleAdapter
    from semblance.host.demo_models import Topology
    from semblance.host.styledrop.recipe import TuningRecipe

TEXT_SCALE = GUIDANCE - 1
STYLE_SCALES = (0.0, 0.5, 1.0)
ROUND_SCALE = 0.5
"""The style scale at which rounds are sampled and compared."""


@dataclass(frozen=True)
class Tuning:
    """How a style is learnt on one topology."""

    topology: Topology
    blocks: Sequence[str]
    stages: Sequence[tuple[int, float]]
    """Steps and learning rates, one after the other: a high rate finds the style, a low one calms what that left."""
    round_stages: Sequence[tuple[int, float]]
    """Of the second round, which goes on from the first."""
    placed: bool = False
    """Whether prompts say where the figure stands: where figures are too rough to name, their place is judged."""
    batch: int = 2
    width: int = 16

    @property
    def measures(self) -> Sequence[str]:
        return PLACE_KEYS if self.placed else LEAK_KEYS

    def captions(self, asked: Scenes) -> list[str]:
        return content_captions(asked) if self.placed else shape_captions(asked)

    def candidates(self) -> list[str]:
        """Two prompts for every third shape, of which a round samples and picks."""
        names = [f"a {words[0]}" for words in [*SHAPE_WORDS.values()][::3]] * 2
        places = [words[0] for words in PLACE_WORDS.values()]
        placed = [f"{name} {places[number % len(places)]}" for number, name in enumerate(names)]
        return placed if self.placed else names

    def recipe(self, steps: int, rate: float, seed: int) -> TuningRecipe:
        from semblance.host.styledrop.recipe import TuningRecipe

        # Captions say where the figure is, which a flip would make wrong.
        fixed: dict[str, Any] = {"form": "bottleneck", "flips": False, "gradient_checkpointing": False}
        sizes: dict[str, Any] = {"width": self.width, "batch": self.batch}
        return TuningRecipe(tuple(self.blocks), steps=steps, learning_rate=rate, seed=seed, **sizes, **fixed)


UNET = Tuning(
    "SD 1.5",  # SDXL's colours come by convolutions, which no adapter of attention reaches
    # Those at full resolution. With output.8, the other block of the style, figures are lost.
    ("input.1", "input.2", "output.9", "output.10", "output.11"),
    ((60, 0.02), (40, 0.005)),
    ((40, 0.005),),
)
MASKED = Tuning(
    "aMUSEd",
    tuple(f"middle.{layer}" for layer in range(5)),
    ((60, 0.01), (40, 0.0025)),
    ((40, 0.0025),),
    placed=True,
    width=8,
)
TUNINGS = (UNET, MASKED)
CANDIDATE_SEED = 71
PICKED = 4


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures with their captions."""

    pictures: Tensor  # (pictures, height, width, 3) in 0..1
    captions: Sequence[str]

    @classmethod
    def of(cls, drawn: Scenes) -> Pictures:
        return cls(draw(drawn).pictures.movedim(1, -1), content_captions(drawn))


@dataclass(frozen=True, eq=False)
class Adapters:
    """The adapters of a study's references, tuned when they are first asked for."""

    study: Study
    tuning: Tuning = UNET
    _first: dict[int, StyleAdapter] = field(default_factory=dict[int, Any])
    _second: dict[int, StyleAdapter] = field(default_factory=dict[int, Any])

    @classmethod
    def over(cls, references: int, tuning: Tuning = UNET) -> Adapters:
        """For the first references of `Pairs.draw`."""
        pairs = Pairs.draw()
        few = pairs.take(torch.arange(references * pairs.per_reference))
        pairs = Pairs(few.asked, few.references, pairs.per_reference)
        return cls(Study.open(tuning.topology, torch.float32, pairs), tuning)

    def plain(self) -> Measures:
        """The prompts without an adapter, judged against the references' styles."""
        return self.study.judged(self.study.sample(self.tuning.captions(self.study.pairs.asked)))

    def reference(self, row: int) -> Scenes:
        """The reference of a row of the pairs."""
        return self.study.pairs.references.take(torch.tensor([row]))

    def first(self, row: int) -> StyleAdapter:
        """Tuned on the reference alone."""
        if row not in self._first:
            self._first[row] = self._tune(row, Pictures.of(self.reference(row)), self.tuning.stages)
        return self._first[row]

    def second(self, row: int) -> StyleAdapter:
        """The first, after a round of feedback."""
        if row not in self._second:
            self._second[row] = self._tune(row, self.picks(row), self.tuning.round_stages, self.first(row))
        return self._second[row]

    def picks(self, row: int) -> Pictures:
        """Of the candidates, made with the first adapter, the best by text of the more styled half.

        By text alone those that took up least of the style would be the best.
        """
        from semblance.host.evaluation.clip_scores import STYLE, TEXT, score_pictures
        from semblance.metrics.picks import best

        captions = self.tuning.candidates()
        made = sample(self.study, self.first(row), captions, CANDIDATE_SEED + row, ROUND_SCALE).movedim(1, -1)
        demo, style = self.study.demo, draw(self.reference(row)).pictures.movedim(1, -1)
        scores = score_pictures(made, "\n".join(captions), demo.clip, demo.clip_vision, style).scores
        middle = torch.tensor(scores[STYLE].values).median().item()
        chosen = best(scores, PICKED, TEXT, {STYLE: middle})
        return Pictures(made[chosen], [captions[place] for place in chosen])

    def _tune(self, row: int, on: Pictures, stages: Sequence[tuple[int, float]], start: Any = None) -> StyleAdapter:
        """Each row with a seed of its own: what an adapter is like depends on its draws, too."""
        from semblance.host.styledrop.encoding import encode_examples
        from semblance.host.styledrop.tuning import tune

        demo = self.study.demo
        examples = encode_examples([on.pictures], on.captions, "", demo.clip, demo.vae, flips=False)
        for steps, rate in stages:
            start = tune(demo.model, examples, self.tuning.recipe(steps, rate, 1 + row), start).adapter
        return start


@torch.inference_mode()
def sample(study: Study, adapter: StyleAdapter, captions: Sequence[str], seed: int, style_scale: float) -> Tensor:
    """Pictures (captions, 3, 128, 128) in 0..1 by StyleDrop Guider, with the noise that `Study.sample` starts from."""
    from semblance.attention.engine.scope import ScheduleWindow, Scope
    from semblance.host.styledrop.guider import Scales, styledrop_guider

    guider = styledrop_guider(
        study.demo.model,
        adapter,
        1.0,
        lambda known: Scope(known.family.preset("all"), ScheduleWindow(0.0, 1.0)),
        Scales(style_scale, TEXT_SCALE),
        study.prompt(captions),
        study.prompt([""]),
    )
    return study.guided(guider, len(captions), seed)


def with_adapters(adapters: Adapters, style_scale: float, second: bool = False) -> tuple[Tensor, Measures]:
    """The asked shapes in the style of each reference, judged as `Study.with_setting` judges InstantStyle."""
    study = adapters.study
    captions, each = adapters.tuning.captions(study.pairs.asked), study.pairs.per_reference
    made = []
    for row in range(0, len(captions), each):
        adapter = adapters.second(row) if second else adapters.first(row)
        made.append(sample(study, adapter, captions[row : row + each], NOISE_SEED + row, style_scale))
    pictures = torch.cat(made)
    return pictures, study.judged(pictures)


def table(adapters: Adapters) -> Table:
    """Plain, InstantStyle, StyleDrop at each of STYLE_SCALES, and after a round of feedback."""
    study = adapters.study
    found = {
        "plain": adapters.plain(),
        **({"InstantStyle, style blocks": study.with_setting(Setting("style"))} if study.topology in ADAPTERS else {}),
        **{f"StyleDrop, style scale {scale:g}": with_adapters(adapters, scale)[1] for scale in STYLE_SCALES},
        f"after a round of feedback, {ROUND_SCALE:g}": with_adapters(adapters, ROUND_SCALE, second=True)[1],
    }
    return style_table(found, adapters.tuning.measures, study.pairs.per_reference)


def sheet(adapters: Adapters, output: Path, rows: int = 4) -> Path:
    """References in rows: the reference, and its first prompt at each of STYLE_SCALES and after the round."""
    study, each = adapters.study, adapters.study.pairs.per_reference
    shots: list[list[Shot]] = []
    for row in range(0, min(rows * each, len(study.pairs)), each):
        words = adapters.tuning.captions(study.pairs.asked)[row : row + 1]
        made = {
            "reference": draw(adapters.reference(row)).pictures,
            "plain": study.sample(words, NOISE_SEED + row),
            **{f"scale {s:g}": sample(study, adapters.first(row), words, NOISE_SEED + row, s) for s in STYLE_SCALES},
            "second round": sample(study, adapters.second(row), words, NOISE_SEED + row, ROUND_SCALE),
        }
        shots.append([_shot(name, picture[0], words[0], output, row) for name, picture in made.items()])
    return contact_sheet(shots, output / f"styledrop_{slug(study.topology)}.png")


def _shot(name: str, picture: Tensor, words: str, output: Path, row: int) -> Shot:
    path = output / f"styledrop_{row}_{slug(name)}.png"
    save_picture(picture, path)
    return Shot(name, path, "" if name == "reference" else words)


CAPTION = (
    "Held-out references, an adapter tuned on each. The same prompt and noise without an adapter, at three style "
    "scales, and after a round of feedback."
)
TABLE_CAPTION = (
    f"means with 95 % intervals, resampled by reference. The text scale is {TEXT_SCALE:g}, so that a style scale of "
    f"{TEXT_SCALE:g} is CFG {GUIDANCE:g} with the adapter on the prompt's side, as InstantStyle is sampled."
)
