"""A subject recorded while its anchors are sampled serves later images as the authors' cache does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from semblance.attention.engine.call import AttentionSite
from semblance.attention.families import SDXL
from semblance.attention.methods.consistory.applied import applied_subject
from semblance.attention.methods.consistory.method import ConsiStory
from semblance.attention.methods.consistory.settings import Sharing
from semblance.attention.subjects.recording import RecordedSubject
from semblance.attention.subjects.words import SubjectWords
from semblance.host.binding.model import add_patch, attention_layer
from semblance.host.subjects.subject import record
from semblance.tests.support.frozen_cases import furthest, load_reference
from semblance.tests.support.frozen_stories import FIRST, Between, Replayed, samplings
from semblance.tests.support.oracles import oracle_unet

CASE, FACTS = load_reference("consistory_64_anchors")
ANCHORS, EXTRA = slice(0, 2), slice(2, 3)
TOLERANCE = 1e-3
PASSES = "pass1", "pass2"


def words_of(who: str) -> SubjectWords:
    (indices,) = CASE[f"in.token_indices_{who}"].tolist()
    columns = tuple(((column,),) for column in indices)
    scenes = tuple(f"scene {number}" for number in range(len(columns)))
    return SubjectWords(("subject",), scenes, columns, CASE["in.prompt_embeds"].shape[1])


def site_of(name: str) -> AttentionSite:
    """By the name of diffusers."""
    part, block, _, layer, _, depth, _ = name.split(".")
    number = int(block) * 3 + int(layer)
    where = ("output", number) if part == "up_blocks" else ("input", number + 1)
    return AttentionSite("self", *where, int(depth))


@pytest.fixture(scope="module")
def model() -> Any:
    return oracle_unet("sdxl")


@pytest.fixture(scope="module")
def recorded(model: Any) -> tuple[list[Tensor], RecordedSubject, Between]:
    """Both anchors as the authors' run made them, after each sampling, and what was written down of them."""
    sharing = Sharing(anchors=0, dropout=Replayed.of(CASE, "dropout.anchors.drop"))
    story = add_patch(model, ConsiStory(words_of("anchors"), SDXL.consistory, sharing))
    between = Between()
    return *record(story, lambda recording: samplings(recording, CASE, FACTS, ANCHORS, between)), between


@pytest.fixture(scope="module")
def extra(model: Any, recorded: Any) -> tuple[list[Tensor], Between]:
    """The image that looks at them, after each sampling."""
    between = Between()
    applied = add_patch(model, applied_subject(words_of("extra"), SDXL.consistory, recorded[1]))
    return samplings(applied, CASE, FACTS, EXTRA, between), between


def test_anchors_and_the_image_that_looks_at_them_equal_theirs(recorded: Any, extra: Any) -> None:
    for name, anchor, image in zip(PASSES, recorded[0], extra[0], strict=True):
        assert furthest(anchor, CASE[f"anchors.{name}.final"]) <= TOLERANCE
        assert furthest(image, CASE[f"extra.{name}.final"]) <= TOLERANCE
    assert (extra[0][0] - extra[0][1]).abs().mean() > 1e-3


@pytest.mark.parametrize("who", ["anchors", "extra"])
def test_masks_and_features_equal_theirs(recorded: Any, extra: Any, who: str) -> None:
    """The masks after the first sampling's last step, to the token."""
    between: Between = {"anchors": recorded[2], "extra": extra[1]}[who]
    last = FACTS["n_steps"] - 1
    compared = 0
    for (sampling, step, tokens), found in between.masks.items():
        if (sampling, step) == (FIRST, last):
            assert torch.equal(found, CASE[f"{who}.mask{int(tokens**0.5)}"]), tokens
            compared += 1
    assert compared
    assert furthest(between.features, CASE[f"{who}.dift_raw"]) <= TOLERANCE


@pytest.mark.parametrize("side", FACTS["resolutions"])
def test_matches_with_the_anchors_equal_theirs(recorded: Any, extra: Any, side: int) -> None:
    features = torch.cat([extra[1].features, recorded[2].features])
    masks = torch.cat([CASE[f"{who}.mask{side}"] for who in ("extra", "anchors")])
    for anchor in range(2):
        place, distance = Between(features=features).matches(masks, 0, 1 + anchor)
        assert torch.equal(place.int(), CASE[f"extra.nn_map{side}"][0, anchor].int())
        assert furthest(distance, CASE[f"extra.nn_dist{side}"][0, anchor]) <= 1e-4


def test_what_is_recorded_equals_their_cache(model: Any, recorded: Any) -> None:
    _, subject, _ = recorded
    for name, site in (("up_12", AttentionSite("self", "output", 0)), ("up_28", AttentionSite("self", "output", 5))):
        expected = CASE[f"cache1.input_h.{name}.step2"]
        assert subject.passes[0].sides == ("negative", "positive")
        found = subject.passes[0].at(site, 2)
        assert found.shape == expected.shape
        assert (found - expected).abs().max() <= 1e-3
    site = AttentionSite("self", "input", 4)
    assert subject.features is not None
    assert set(subject.passes[1].by_site) == set(map(site_of, FACTS["cached_layers"]))
    assert set(subject.features.outputs) == set(map(site_of, FACTS["h_out_layers"]))
    assert subject.features.steps == tuple(FACTS["caches"]["h_out down_0"]["steps"])
    outputs = subject.features.at(site, 1)
    theirs = CASE["cache2.h_out.down_0.step1"][CASE["anchors.mask32"]]  # theirs hold all tokens, after the projection
    made = attention_layer(model.model.diffusion_model, site).to_out(outputs)
    assert made.shape == theirs.shape and (made - theirs).abs().max() <= 1e-3
