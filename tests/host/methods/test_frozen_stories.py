"""ConsiStory on the real sampler equals the authors' code on every frozen story."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from torch import Tensor

from semblance.attention.families import SDXL
from semblance.attention.methods.consistory.method import ConsiStory
from semblance.attention.methods.consistory.settings import FreeU, Sharing
from semblance.attention.subjects.words import SubjectWords
from semblance.host.binding.model import add_patch
from semblance.tests.support.frozen_cases import REFERENCES, load_reference
from semblance.tests.support.frozen_stories import Replayed, samplings
from semblance.tests.support.oracles import oracle_unet

STORIES = sorted(
    path.stem for path in REFERENCES.glob("consistory_*.safetensors") if not path.stem.endswith(("units", "anchors"))
)
TOLERANCE = 1e-3

pytestmark = pytest.mark.slow  # at every change the shortest story is tried, in test_frozen_subject.py


@dataclass(frozen=True, eq=False)
class Story:
    name: str
    case: dict[str, Tensor]
    facts: dict[str, Any]
    model: Any

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
        return ConsiStory(self.words, SDXL.consistory, sharing, free_u=free_u, **settings)

    def samplings(self, patch: ConsiStory) -> list[Tensor]:
        return samplings(add_patch(self.model, patch), self.case, self.facts)


@pytest.fixture(scope="module")
def model() -> Any:
    return oracle_unet("sdxl")


@pytest.fixture(scope="module", params=STORIES)
def story(request: pytest.FixtureRequest, model: Any) -> Story:
    return Story(request.param, *load_reference(request.param), model)


def test_both_samplings_equal_theirs(story: Story) -> None:
    first, second = story.samplings(story.patch())
    assert (first - story.case["pass1.final"]).abs().max() <= TOLERANCE
    assert (second - story.case["pass2.final"]).abs().max() <= TOLERANCE
    assert (first - second).abs().mean() > 0.01
