"""ConsiStory on the real sampler equals the authors' code on every frozen story."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from semblance.attention.families import SDXL
from semblance.attention.host.inversion import noise_levels
from semblance.attention.host.patching import add_patch
from semblance.attention.methods.consistory import ConsiStory, FreeU, MaskDropout, Sharing
from semblance.attention.story import SubjectWords
from semblance.tests.tiny_models import load_reference, oracle_unet, sampler_custom
from semblance.tests.tiny_models.references import REFERENCES

STORIES = sorted(
    path.stem
    for path in Path(REFERENCES).glob("consistory_*.safetensors")
    if path.stem.split("_")[1].isdigit() and not path.stem.endswith("anchors")
)
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Replayed(MaskDropout):
    """The draws that the authors' run made."""

    drawn: dict[int, Tensor] = field(default_factory=dict)  # by tokens: bool (steps, images, tokens)

    def draw(self, step: int, images: int, grid: tuple[int, int]) -> Tensor:
        return self.drawn[grid[0] * grid[1]][step - 1]  # those of a step hide tokens at the next


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
        drawn = {t.shape[2]: t for name, t in self.case.items() if name.startswith("dropout.drop")}
        sharing = Sharing(anchors=len(self.facts["anchors"]), dropout=Replayed(drawn=drawn))
        factors = self.facts["freeu"]
        free_u = FreeU((factors["b1"], factors["b2"]), (factors["s1"], factors["s2"])) if factors else None
        return ConsiStory(self.words, SDXL, sharing, free_u=free_u, **settings)

    def sample(self, model: Any) -> Tensor:
        """The final latent in the authors' space."""
        context, pooled = (self.case[name].float() for name in ("in.prompt_embeds", "in.pooled"))
        height, width = self.facts["height_width"]
        size = {"width": width, "height": height, "target_width": width, "target_height": height}
        positive = [[context, {"pooled_output": pooled, **size}]]
        negative = [[torch.zeros_like(context), {"pooled_output": torch.zeros_like(pooled), **size}]]
        levels = noise_levels(self.model, [*self.facts["timesteps"], 0])
        start = self.case["in.latents"].float() * (1 + levels[0] ** 2) ** 0.5
        latent = {"samples": self.model.model.process_latent_out(start)}
        made = sampler_custom(model, positive, negative, latent, levels, cfg=self.facts["guidance_scale"])
        return self.model.model.process_latent_in(made) / (1 + levels[-1] ** 2) ** 0.5


@pytest.fixture(scope="module")
def model() -> Any:
    return oracle_unet("sdxl")


@pytest.fixture(scope="module", params=STORIES)
def story(request: pytest.FixtureRequest, model: Any) -> Story:
    return Story(request.param, *load_reference(request.param), model)


def test_the_second_sampling_equals_theirs(story: Story) -> None:
    final = story.sample(add_patch(story.model, story.patch()))
    assert (final - story.case["pass2.final"]).abs().max() <= TOLERANCE
