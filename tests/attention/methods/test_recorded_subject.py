"""A subject recorded while its anchors are sampled serves later images as the authors' cache does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from semblance.attention.call import AttentionSite
from semblance.attention.families import SDXL
from semblance.attention.host.inversion import noise_levels
from semblance.attention.host.patching import add_patch, attention_layer
from semblance.attention.host.recording import record
from semblance.attention.methods.consistory import AppliedSubject, ConsiStory, Injection, MaskDropout, Sharing
from semblance.attention.recording import RecordedSubject
from semblance.attention.story import SubjectWords
from semblance.tests.tiny_models import load_reference, oracle_unet, sampler_custom

CASE, FACTS = load_reference("consistory_64_anchors")
ANCHORS, EXTRA = slice(0, 2), slice(2, 3)
TOLERANCE = 1e-3
PASSES = {"pass1": Injection(strength=0.0), "pass2": Injection()}


@dataclass(frozen=True)
class Replayed(MaskDropout):
    """The draws that the authors' run made."""

    drawn: dict[int, Tensor] = field(default_factory=dict)  # by tokens: bool (steps, images, tokens)

    def draw(self, step: int, images: int, grid: tuple[int, int]) -> Tensor:
        return self.drawn[grid[0] * grid[1]][step - 1]  # those of a step hide tokens at the next


def words_of(who: str, copies: int = 1) -> SubjectWords:
    (indices,) = CASE[f"in.token_indices_{who}"].tolist()
    columns = tuple(((column,),) for column in indices) * copies
    scenes = tuple(f"scene {number}" for number in range(len(columns)))
    return SubjectWords(("subject",), scenes, columns, CASE["in.prompt_embeds"].shape[1])


def sample(model: Any, images: slice | list[int], start: Tensor | None = None) -> Tensor:
    """The final latents of some images of the case in the authors' space."""
    context, pooled = (CASE[name][images].float() for name in ("in.prompt_embeds", "in.pooled"))
    height, width = FACTS["height_width"]
    size = {"width": width, "height": height, "target_width": width, "target_height": height}
    positive = [[context, {"pooled_output": pooled, **size}]]
    negative = [[torch.zeros_like(context), {"pooled_output": torch.zeros_like(pooled), **size}]]
    levels = noise_levels(model, [*FACTS["timesteps"], 0])
    noise = CASE["in.latents"][images].float() if start is None else start
    latent = {"samples": model.model.process_latent_out(noise * (1 + levels[0] ** 2) ** 0.5)}
    made = sampler_custom(model, positive, negative, latent, levels, cfg=FACTS["guidance_scale"])
    return model.model.process_latent_in(made) / (1 + levels[-1] ** 2) ** 0.5


def site_of(name: str) -> AttentionSite:
    """By the name of diffusers."""
    part, block, _, layer, _, depth, _ = name.split(".")
    number = int(block) * 3 + int(layer)
    where = ("output", number) if part == "up_blocks" else ("input", number + 1)
    return AttentionSite("self", *where, int(depth))


def applied(model: Any, subject: RecordedSubject, copies: int = 1, **settings: Any) -> Any:
    return add_patch(model, AppliedSubject(words_of("extra", copies), SDXL.consistory, subject=subject, **settings))


@pytest.fixture(scope="module")
def model() -> Any:
    return oracle_unet("sdxl")


@pytest.fixture(scope="module")
def recorded(model: Any) -> Callable[[str], tuple[Tensor, RecordedSubject]]:
    """Both anchors as the authors' run without or with injection made them, recorded once each."""
    drawn = {t.shape[2]: t for name, t in CASE.items() if name.startswith("dropout.anchors.drop")}
    made: dict[str, tuple[Tensor, RecordedSubject]] = {}

    def run(name: str) -> tuple[Tensor, RecordedSubject]:
        if name not in made:
            sharing = Sharing(anchors=0, dropout=Replayed(drawn=drawn))
            story = ConsiStory(words_of("anchors"), SDXL.consistory, sharing, injection=PASSES[name])
            made[name] = record(add_patch(model, story), lambda recording: sample(recording, ANCHORS))
        return made[name]

    return run


@pytest.mark.parametrize("name", PASSES)
def test_anchors_and_the_image_that_looks_at_them_equal_theirs(model: Any, recorded: Any, name: str) -> None:
    anchors, subject = recorded(name)
    assert (anchors - CASE[f"anchors.{name}.final"]).abs().max() <= TOLERANCE
    extra = sample(applied(model, subject, injection=PASSES[name]), EXTRA)
    assert (extra - CASE[f"extra.{name}.final"]).abs().max() <= TOLERANCE
    assert (extra - sample(model, EXTRA)).abs().mean() > 1e-3


def test_what_is_recorded_equals_their_cache(model: Any, recorded: Any) -> None:
    _, subject = recorded("pass2")
    for name, site in (("up_12", AttentionSite("self", "output", 0)), ("up_28", AttentionSite("self", "output", 5))):
        expected = CASE[f"cache1.input_h.{name}.step2"]
        assert subject.samplings[0].sides == ("negative", "positive")
        found = subject.samplings[0].at(site, 2)
        assert found.shape == expected.shape
        assert (found - expected).abs().max() <= 1e-3
    site = AttentionSite("self", "input", 4)
    assert subject.features is not None
    assert set(subject.samplings[1].by_site) == set(map(site_of, FACTS["cached_layers"]))
    assert set(subject.features.outputs) == set(map(site_of, FACTS["h_out_layers"]))
    assert subject.features.steps == tuple(FACTS["caches"]["h_out down_0"]["steps"])
    outputs = subject.features.at(site, 1)
    theirs = CASE["cache2.h_out.down_0.step1"][CASE["anchors.mask32"]]  # theirs hold all tokens, after the projection
    made = attention_layer(model.model.diffusion_model, site).to_out(outputs)
    assert made.shape == theirs.shape and (made - theirs).abs().max() <= 1e-3
