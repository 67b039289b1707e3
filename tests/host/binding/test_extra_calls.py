"""Calls of the model beside a step's own, as perturbed guidance makes: they are not the story's, and change nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.model_patcher
import comfy.samplers
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from comfy_extras.nodes_sag import SelfAttentionGuidance
from torch import Tensor

from semblance.host.binding.model import patches_on
from semblance.host.subjects.masks import subject_masks_of
from semblance.tests.support.speeds import slow_but
from semblance.tests.support.studio import PATCHES, STORIES, Studio, on_both_families, relative_error, rows_of_calls

ADDS_CALLS_UP = ("remembers",)
EVERY = [name for name in PATCHES if name not in ADDS_CALLS_UP]
PERTURBED = [("middle", 0), ("output", 0), ("output", 5)]


def perturbed(model: ModelPatcher, scale: float, blocks: Any = PERTURBED, side: str = "cond") -> ModelPatcher:
    """Guidance away from a prediction in which some self-attentions give back their values, as PAG nodes have it."""
    shapes: list[tuple[int, ...]] = []

    def identity(query: Tensor, key: Tensor, value: Tensor, extra: dict[str, Any]) -> Tensor:
        shapes.append((key.shape[1], value.shape[1], extra["activations_shape"][0] - len(query)))
        return value

    def guide(args: dict[str, Any]) -> Tensor:
        options = args["model_options"].copy()
        for block in blocks:
            options = comfy.model_patcher.set_model_options_patch_replace(options, identity, "attn1", *block)
        (weak,) = comfy.samplers.calc_cond_batch(args["model"], [args[side]], args["input"], args["sigma"], options)
        return args["denoised"] + (args[f"{side}_denoised"] - weak) * scale

    guided = model.clone()
    guided.set_model_sampler_post_cfg_function(guide)
    return guided


@pytest.mark.parametrize("side", ["cond", "uncond"])
@pytest.mark.parametrize("name", slow_but(EVERY, lambda name: name in ("styleid masked", "consistory")))
def test_a_further_call_on_what_a_step_has_seen_changes_nothing(sd15: Studio, name: str, side: str) -> None:
    assert torch.equal(sd15.sample(perturbed(sd15.with_patch(name), 0.0, (), side)), sd15.patched(name))


@pytest.mark.parametrize("name", sorted(STORIES))
def test_a_further_call_is_not_rehearsed_and_adds_no_maps(sd15: Studio, name: str) -> None:
    steps = 4
    alone, calls = rows_of_calls(sd15.with_patch(name))
    own = sd15.sample(alone, steps=steps)
    guided, more = rows_of_calls(perturbed(sd15.with_patch(name), 0.0))
    seen = sd15.sample(guided, steps=steps)
    passes = 2
    assert len(more) <= len(calls) + passes * steps  # one call more for each step that a pass takes
    assert len(calls) < len(more)
    assert torch.equal(own, seen)
    assert torch.equal(subject_masks_of({"samples": own}), subject_masks_of({"samples": seen}))


@pytest.mark.parametrize("blocks", [[("middle", 0)], PERTURBED], ids=["middle", "where images share"])
@on_both_families(sorted(STORIES), quick_on_sdxl=())
def test_perturbed_guidance_works_where_images_share(studio: Studio, name: str, blocks: Any) -> None:
    settings = {"size": (16, 16)}  # smaller ones have a single token in the middle
    guided = studio.sample(perturbed(studio.with_patch(name), 3.0, blocks), **settings)
    assert torch.isfinite(guided).all()
    assert torch.equal(guided, studio.sample(studio.with_patch(name, perturbed(studio.model, 3.0, blocks)), **settings))
    assert relative_error(guided, studio.patched(name, **settings)) > 1e-3
    assert relative_error(guided, studio.sample(perturbed(studio.model, 3.0, blocks), **settings)) > 1e-3


def test_perturbed_guidance_is_the_same_where_conditionings_are_sent_one_by_one(
    sd15: Studio, request: pytest.FixtureRequest
) -> None:
    """A story blends queries in the further call too, whichever call of the step kept them."""
    guided, settings = perturbed(sd15.with_patch("consistory"), 3.0), {"size": (16, 16), "steps": 3}
    together = sd15.sample(guided, **settings)
    request.getfixturevalue("one_conditioning_a_call")
    assert relative_error(sd15.sample(guided, **settings), together) < 1e-4


@pytest.mark.parametrize(
    "node",
    [
        lambda model: PerturbedAttentionGuidance.execute(model, 2.0)[0],
        lambda model: SelfAttentionGuidance.execute(model, 0.8, 2.0)[0],
    ],
    ids=["PAG", "SAG"],
)
def test_the_hosts_own_guidance_works_beside_a_story_in_either_order(sd15: Studio, node: Callable[..., Any]) -> None:
    after = sd15.sample(node(sd15.with_patch("consistory")), size=(16, 16))
    assert torch.equal(after, sd15.sample(sd15.with_patch("consistory", node(sd15.model)), size=(16, 16)))
    assert relative_error(after, sd15.patched("consistory", size=(16, 16))) > 1e-4


def test_identity_attention_is_beside_guests_and_shared_keys_alike(sd15: Studio) -> None:
    both = sd15.with_patch("styleid", sd15.with_patch("consistory"))
    assert len(patches_on(both)) == 2
    rows: set[int] = set()

    def identity(query: Tensor, key: Tensor, value: Tensor, extra: dict[str, Any]) -> Tensor:
        assert extra["activations_shape"][0] == extra["original_shape"][0] == len(query)
        rows.add(len(query))
        return value

    replaced = both.clone()
    for part, number in PERTURBED:
        replaced.set_model_attn1_replace(identity, part, number)
    assert torch.isfinite(sd15.sample(replaced)).all()
    assert rows == {2, 4}  # where images share, those of each group by themselves; never the guests


def test_an_occupant_that_gives_other_tokens_is_refused_in_a_sentence(sd15: Studio) -> None:
    model = sd15.with_patch("shares keys").clone()
    model.set_model_attn1_replace(lambda query, key, value, extra: value, "output", 5)
    with pytest.raises(ValueError, match=r"self output.5\[0\] another node puts 8 tokens.*replaces attn1: .*Bypass"):
        sd15.sample(model)
