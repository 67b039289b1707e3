"""ConsiStory on the real sampler equals the authors' code on every frozen story."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from semblance.attention.families import CONSISTORY, SDXL
from semblance.attention.methods.consistory.method import ConsiStory
from semblance.attention.methods.consistory.settings import FreeU, Sharing
from semblance.attention.subjects.words import SubjectWords
from semblance.host.binding.model import add_patch
from semblance.tests.support.frozen_cases import REFERENCES, furthest, load_reference
from semblance.tests.support.frozen_stories import FIRST, SECOND, Between, Replayed, passes_of
from semblance.tests.support.oracles import oracle_unet

STORIES = sorted(
    path.stem for path in REFERENCES.glob("consistory_*.safetensors") if not path.stem.endswith(("units", "anchors"))
)
TOLERANCE = 1e-3
PASSES = {FIRST: "pass1", SECOND: "pass2"}

pytestmark = pytest.mark.slow  # at every change the shortest story is tried, in test_frozen_subject.py


@dataclass(frozen=True, eq=False)
class Story:
    case: dict[str, Tensor]
    facts: dict[str, Any]

    @property
    def words(self) -> SubjectWords:
        indices = self.facts["token_indices"]
        columns = tuple(tuple(() if i < 0 else (i,) for i in scene) for scene in zip(*indices, strict=True))
        scenes = tuple(f"scene {number}" for number in range(len(columns)))
        subjects = tuple(f"subject {number}" for number in range(len(indices)))
        return SubjectWords(subjects, scenes, columns, self.case["in.prompt_embeds"].shape[1])

    def patch(self, **settings: Any) -> ConsiStory:
        sharing = Sharing(anchors=len(self.facts["anchors"]), dropout=Replayed.of(self.case, "dropout.drop"))
        factors = self.facts["freeu"]
        free_u = FreeU((factors["b1"], factors["b2"]), (factors["s1"], factors["s2"])) if factors else None
        return ConsiStory(self.words, SDXL.choice(CONSISTORY), sharing, free_u=free_u, **settings)


@dataclass(frozen=True, eq=False)
class Told:
    """A story told as the authors told it, once for all that is asked of it."""

    case: dict[str, Tensor]
    facts: dict[str, Any]
    finals: list[Tensor]
    between: Between

    def expected(self, number: int, name: str) -> Tensor | None:
        """What their file holds of a pass; the larger stories leave things out."""
        return self.case.get(f"{PASSES[number]}.{name}")


@pytest.fixture(scope="module")
def model() -> Any:
    return oracle_unet("sdxl")


@pytest.fixture(scope="module", params=STORIES)
def told(request: pytest.FixtureRequest, model: Any) -> Told:
    story, between = Story(*load_reference(request.param)), Between()
    finals = passes_of(add_patch(model, story.patch()), story.case, story.facts, between=between)
    return Told(story.case, story.facts, finals, between)


def test_both_passes_equal_theirs(told: Told) -> None:
    first, second = told.finals
    assert furthest(first, told.case["pass1.final"]) <= TOLERANCE
    assert furthest(second, told.case["pass2.final"]) <= TOLERANCE
    assert (first - second).abs().mean() > 0.01


@pytest.mark.parametrize("number", PASSES)
def test_latents_after_every_step_that_is_kept_equal_theirs(told: Told, number: int) -> None:
    kept = {step: told.expected(number, f"latents_after_step_{step}") for step in told.facts["steps_kept"]}
    assert number == SECOND or (kept and None not in kept.values())
    for step, theirs in kept.items():
        if theirs is not None:
            assert furthest(told.between.after(step, number), theirs) <= TOLERANCE, step


@pytest.mark.parametrize("number", PASSES)
def test_masks_of_every_step_equal_theirs(told: Told, number: int) -> None:
    """To the token; a file that holds one step's holds the last one's."""
    steps, compared = told.facts["n_steps"], 0
    for (_, step, tokens), found in select(told.between.masks, number).items():
        theirs = told.expected(number, f"mask{int(tokens**0.5)}")
        if theirs is not None and step - steps + len(theirs) >= 0:
            assert torch.equal(found, theirs[step - steps + len(theirs)]), (step, tokens)
            compared += 1
    assert compared >= (2 * (steps - 1) if told.expected(number, "maps") is not None else number == FIRST)


@pytest.mark.parametrize("number", PASSES)
def test_maps_of_every_step_equal_theirs(told: Told, number: int) -> None:
    theirs = told.expected(number, "maps")  # (steps, subjects, images, tokens)
    if theirs is not None:
        found = select(told.between.maps, number)
        assert len(found) >= told.facts["n_steps"] - 1
        for (_, step), maps in found.items():
            assert furthest(maps.transpose(0, 1), theirs[step]) <= 1e-5, step


def test_features_and_matches_equal_theirs(told: Told) -> None:
    theirs = told.expected(FIRST, "dift_raw")
    if theirs is None:
        return
    assert furthest(told.between.features, theirs) <= TOLERANCE
    last = told.facts["n_steps"] - 1
    for side in told.facts["resolutions"]:
        masks = told.case[f"pass1.mask{side}"][last]
        places, distances = (told.case[f"pass1.nn_{what}{side}"] for what in ("map", "dist"))
        for target, source in itertools.permutations(range(len(masks)), 2):
            place, distance = told.between.matches(masks, target, source)
            assert torch.equal(place.int(), places[target, source].int())
            assert furthest(distance, distances[target, source]) <= 1e-4


def select(found: dict[Any, Tensor], number: int) -> dict[Any, Tensor]:
    return {key: value for key, value in found.items() if key[0] == number}
