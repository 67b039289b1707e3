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

from .captions import SHAPE_WORDS, content_captions, shape_captions
from .contact_sheet import contact_sheet
from .metrics import Measures
from .page import Table
from .probe import LEAK_KEYS, style_table
from .run import Shot
from .study import GUIDANCE, NOISE_SEED, STEPS, Pairs, Setting, Study
from .training.sheets import save_picture
from .world import Scenes, draw

if TYPE_CHECKING:
    from semblance.attention.adapters.style_adapter import StyleAdapter

TOPOLOGY = "SD 1.5"  # the other's colours come by convolutions, which no adapter of attention reaches
TEXT_SCALE = GUIDANCE - 1
STYLE_SCALES = (0.0, 0.5, 1.0)
ROUND_SCALE = 0.5
"""The style scale at which rounds are sampled and compared."""
RECIPE: dict[str, Any] = {
    "form": "bottleneck",
    "width": 16,
    "batch": 2,
    "flips": False,
    "gradient_checkpointing": False,
}
"""Of a TuningRecipe. Captions say where the figure is, which a flip would make wrong."""
BLOCKS = ("input.1", "input.2", "output.9", "output.10", "output.11")
"""Those at full resolution. With output.8, the other block of the style, figures are lost."""
STAGES = ((60, 0.02), (40, 0.005))
"""Steps and learning rates, one after the other: a high rate finds the style, a low one calms what that left."""
ROUND_STAGES = ((40, 0.005),)
"""Of the second round, which goes on from the first."""
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
    stages: Sequence[tuple[int, float]] = STAGES
    _first: dict[int, StyleAdapter] = field(default_factory=dict[int, Any])
    _second: dict[int, StyleAdapter] = field(default_factory=dict[int, Any])

    @classmethod
    def over(cls, references: int) -> Adapters:
        """For the first references of `Pairs.draw`."""
        pairs = Pairs.draw()
        few = pairs.take(torch.arange(references * pairs.per_reference))
        pairs = Pairs(few.asked, few.references, pairs.per_reference)
        return cls(Study.open(TOPOLOGY, torch.float32, pairs))

    def reference(self, row: int) -> Scenes:
        """The reference of a row of the pairs."""
        return self.study.pairs.references.take(torch.tensor([row]))

    def first(self, row: int) -> StyleAdapter:
        """Tuned on the reference alone."""
        if row not in self._first:
            self._first[row] = self._tune(row, Pictures.of(self.reference(row)), self.stages)
        return self._first[row]

    def second(self, row: int) -> StyleAdapter:
        """The first, after a round of feedback."""
        if row not in self._second:
            self._second[row] = self._tune(row, self.picks(row), ROUND_STAGES, self.first(row))
        return self._second[row]

    def picks(self, row: int) -> Pictures:
        """Of two pictures of every third shape, made with the first adapter, the best by text of the more styled half.

        By text alone those that took up least of the style would be the best.
        """
        from semblance.host.evaluation.clip_scores import STYLE, TEXT, score_pictures
        from semblance.metrics.picks import best

        captions = [f"a {words[0]}" for words in [*SHAPE_WORDS.values()][::3]] * 2
        made = sample(self.study, self.first(row), captions, CANDIDATE_SEED + row, ROUND_SCALE).movedim(1, -1)
        demo, style = self.study.demo, draw(self.reference(row)).pictures.movedim(1, -1)
        scores = score_pictures(made, "\n".join(captions), demo.clip, demo.clip_vision, style).scores
        middle = torch.tensor(scores[STYLE].values).median().item()
        chosen = best(scores, PICKED, TEXT, {STYLE: middle})
        return Pictures(made[chosen], [captions[place] for place in chosen])

    def _tune(self, row: int, on: Pictures, stages: Sequence[tuple[int, float]], start: Any = None) -> StyleAdapter:
        """Each row with a seed of its own: what an adapter is like depends on its draws, too."""
        from semblance.host.styledrop.encoding import encode_examples
        from semblance.host.styledrop.recipe import TuningRecipe
        from semblance.host.styledrop.tuning import tune

        demo = self.study.demo
        examples = encode_examples([on.pictures], on.captions, "", demo.clip, demo.vae, flips=False)
        for steps, rate in stages:
            recipe = TuningRecipe(BLOCKS, steps=steps, learning_rate=rate, seed=1 + row, **RECIPE)
            start = tune(demo.model, examples, recipe, start).adapter
        return start


@torch.inference_mode()
def sample(study: Study, adapter: StyleAdapter, captions: Sequence[str], seed: int, style_scale: float) -> Tensor:
    """Pictures (captions, 3, 128, 128) in 0..1 by StyleDrop Guider, with the noise that `Study.sample` starts from."""
    import comfy.sample
    import comfy.samplers

    from semblance.attention.engine.scope import ScheduleWindow, Scope
    from semblance.host.styledrop.guider import Scales, styledrop_guider

    model, latent = study.demo.model, torch.zeros(len(captions), 4, 16, 16)
    guider = styledrop_guider(
        model,
        adapter,
        1.0,
        lambda known: Scope(known.family.preset("all"), ScheduleWindow(0.0, 1.0)),
        Scales(style_scale, TEXT_SCALE),
        study.prompt(captions),
        study.prompt([""]),
    )
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", STEPS)
    noise, sampler = comfy.sample.prepare_noise(latent, seed), comfy.samplers.sampler_object("euler")
    made = guider.sample(noise, latent, sampler, sigmas, disable_pbar=True, seed=seed)
    return study.demo.vae.decode(made).movedim(-1, 1).clamp(0, 1)


def with_adapters(adapters: Adapters, style_scale: float, second: bool = False) -> tuple[Tensor, Measures]:
    """The asked shapes in the style of each reference, judged as `Study.with_setting` judges InstantStyle."""
    study = adapters.study
    captions, each = shape_captions(study.pairs.asked), study.pairs.per_reference
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
        "plain": study.plain(),
        "InstantStyle, style blocks": study.with_setting(Setting("style")),
        **{f"StyleDrop, style scale {scale:g}": with_adapters(adapters, scale)[1] for scale in STYLE_SCALES},
        f"after a round of feedback, {ROUND_SCALE:g}": with_adapters(adapters, ROUND_SCALE, second=True)[1],
    }
    return style_table(found, LEAK_KEYS, study.pairs.per_reference)


def sheet(adapters: Adapters, output: Path, rows: int = 4) -> Path:
    """References in rows: the reference, and its first prompt at each of STYLE_SCALES and after the round."""
    study, each = adapters.study, adapters.study.pairs.per_reference
    shots: list[list[Shot]] = []
    for row in range(0, min(rows * each, len(study.pairs)), each):
        words = shape_captions(study.pairs.asked)[row : row + 1]
        made = {
            "reference": draw(adapters.reference(row)).pictures,
            "plain": study.sample(words, NOISE_SEED + row),
            **{f"scale {s:g}": sample(study, adapters.first(row), words, NOISE_SEED + row, s) for s in STYLE_SCALES},
            "second round": sample(study, adapters.second(row), words, NOISE_SEED + row, ROUND_SCALE),
        }
        shots.append([_shot(name, picture[0], words[0], output, row) for name, picture in made.items()])
    return contact_sheet(shots, output / "styledrop.png")


def _shot(name: str, picture: Tensor, words: str, output: Path, row: int) -> Shot:
    path = output / f"styledrop_{row}_{name.replace(' ', '_')}.png"
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
