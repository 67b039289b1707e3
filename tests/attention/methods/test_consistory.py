"""One layer of ConsiStory, and every formula of it, equals the authors' code on frozen units."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from semblance.attention.engine.bank import FeatureBank
from semblance.attention.engine.call import AttentionCall, AttentionSite, BlockCall
from semblance.attention.engine.layout import BatchLayout, Chunk
from semblance.attention.engine.moment import Moment
from semblance.attention.engine.sharing import attend_in_groups
from semblance.attention.families import CONSISTORY, SDXL
from semblance.attention.functional.correspondence import near_enough, nearest_patches, patches_of, smooth
from semblance.attention.functional.statistics import otsu_threshold
from semblance.attention.functional.word_maps import subject_mask
from semblance.attention.methods.consistory.batch_anchors import selected_name
from semblance.attention.methods.consistory.method import ConsiStory
from semblance.attention.methods.consistory.settings import FreeU, Injection, QueryBlend, StepRange
from semblance.attention.subjects.words import SubjectWords
from semblance.tests.support.frozen_cases import load_reference

UNITS, FACTS = load_reference("consistory_units")
SITE = AttentionSite("self", "output", 0)
LAYOUT = BatchLayout((Chunk("negative"), Chunk("positive")), FACTS["config"]["B"], (8, 8))
WORDS = SubjectWords(("a",), ("1", "2", "3"), (((1,),),) * 3, 8)


def moment_of(step: int, steps: int = 50, pass_number: int = 1) -> Moment:
    """Of evenly spaced timesteps, as the authors' DDIM takes them."""
    timesteps = [1 + 1000 * (steps - 1 - place) / steps for place in range(steps)]
    ladder = (*(1 - timestep / 999 for timestep in timesteps), 1.0)
    sigmas = (*(timestep / 100 for timestep in timesteps), 0.0)
    return Moment(1.0, step, steps, ladder[step], lambda progress: 0.0, ladder, sigmas, pass_number, passes=2)


def plain_attention(query: Tensor, key: Tensor, value: Tensor, heads: int = 1) -> Tensor:
    parts = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in (query, key, value))
    return nn.functional.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("name", sorted(FACTS["otsu"]))
def test_otsu_splits_as_theirs(name: str) -> None:
    values = UNITS[f"otsu.{name}.in"]
    threshold = otsu_threshold(values.reshape(1, -1))
    assert threshold.item() == pytest.approx(FACTS["otsu"][name], abs=1e-6)
    assert torch.equal(values > threshold, UNITS[f"otsu.{name}.greater"])
    assert torch.equal(values < threshold, UNITS[f"otsu.{name}.less"])


def test_matches_equal_theirs() -> None:
    smoothed = smooth(UNITS["smooth.in"])
    assert (smoothed - UNITS["smooth.out"]).abs().max() <= 1e-6
    for side in FACTS["config"]["R"]:
        patches = patches_of(smoothed, side, side)
        for target in range(len(patches)):
            for source in set(range(len(patches))) - {target}:
                place, distance = nearest_patches(patches[target], patches[source], UNITS[f"nn.mask{side}"][source])
                assert (distance - UNITS[f"nn.dist{side}"][target, source]).abs().max() <= 1e-5
                assert torch.equal(place.int(), UNITS[f"nn.map{side}"][target, source])


def test_clean_mode_copies_from_images_as_they_were() -> None:
    before, after = injected(in_turn=False)
    assert (after - UNITS["inject.out_cloned_source_NOT_official"]).abs().max() <= 1e-5
    assert not torch.equal(before, after)


def test_official_mode_copies_from_images_as_they_have_become() -> None:
    _, after = injected(in_turn=True)
    assert (after - UNITS["inject.out_official_inplace"]).abs().max() <= 1e-5


@pytest.mark.parametrize(("step", "name"), [(7, "sdsa.out"), (2, "sdsa.out_with_query_blending_step2")])
def test_one_attention_equals_theirs(step: int, name: str) -> None:
    patch, bank, moment = ConsiStory(WORDS, SDXL.choice(CONSISTORY)), FeatureBank(), moment_of(step)
    heads = FACTS["config"]["heads"]
    project = {part: UNITS[f"sdsa.w.to_{part}.weight"] for part in "qkv"}
    query, key, value = (nn.functional.linear(UNITS["sdsa.x"], project[part]) for part in "qkv")
    side = int(UNITS["sdsa.mask_after_dropout"].shape[1] ** 0.5)
    places = tuple(mask.nonzero().squeeze(1) for mask in UNITS["sdsa.mask_after_dropout"])
    bank.remember(selected_name(moment, (side, side)), places)
    call = AttentionCall(SITE, LAYOUT, moment, side, side, heads, query, key, value)
    if patch.blend.weight(moment):
        vanilla = nn.functional.linear(UNITS["sdsa.x_vanilla"], project["q"])
        patch.observe(replace(call, query=vanilla), bank)
    output = attend_in_groups(
        patch.edit_inputs(call, bank), lambda q, k, v, images, mask=None: plain_attention(q, k, v, heads)
    )
    made = nn.functional.linear(output, UNITS["sdsa.w.to_out.0.weight"], UNITS["sdsa.w.to_out.0.bias"])
    assert (made - UNITS[name]).abs().max() <= 1e-5


@pytest.mark.parametrize("steps", sorted(FACTS["query_strengths"], key=int))
def test_query_strengths_are_theirs_for_any_number_of_steps(steps: str) -> None:
    expected = FACTS["query_strengths"][steps]
    weights = [QueryBlend().weight(moment_of(step, int(steps))) for step in range(int(steps))]
    assert weights[: len(expected)] == pytest.approx(expected) and not any(weights[len(expected) :])


def test_masks_from_maps_equal_theirs() -> None:
    maps = UNITS["agg.maps"].transpose(0, 1)  # -> (images, subjects, tokens)
    side = int(maps.shape[2] ** 0.5)
    for grid in FACTS["agg"]["res"]:
        found = subject_mask(maps.unflatten(2, (side, side)), grid, grid)
        assert torch.equal(found, UNITS[f"agg.mask{grid}"])
        assert torch.equal(found & ~UNITS[f"agg.drop{grid}"], UNITS[f"agg.maskdrop{grid}"])


def injected(in_turn: bool) -> tuple[Tensor, Tensor]:
    """The features of the frozen case before and after injection."""
    facts, before = FACTS["inject"], UNITS["inject.in"]
    images, tokens, _ = before.shape
    matches, wanted = [], []
    for image in range(images):
        sources = [s for s in range(images) if s != image and UNITS["inject.mapping"][image, s]]
        distances = torch.stack([UNITS[f"nn.dist{facts['res']}"][image, s] for s in sources])
        places = torch.stack([s * tokens + UNITS[f"nn.map{facts['res']}"][image, s].long() for s in sources])
        best = distances.min(dim=0)
        matches.append(places.gather(0, best.indices[None])[0])
        wanted.append(near_enough(best.values) & UNITS[f"nn.mask{facts['res']}"][image])
    assert torch.equal(torch.stack(wanted), UNITS["inject.final_masks"])
    bank = FeatureBank()
    bank.remember("features", torch.empty(0))
    bank.remember(("matches", (16, 16)), (torch.stack(matches), torch.stack(wanted)))
    window = StepRange(facts["window"][0] / 10, facts["window"][1] / 10)
    patch = ConsiStory(WORDS, SDXL.choice(CONSISTORY), injection=Injection(facts["alpha"], window, in_turn))
    site, moment = AttentionSite("self", "input", 4), moment_of(facts["curr_iter"], 10, pass_number=2)
    layout = BatchLayout((Chunk("positive"),), images, (16, 16))
    call = AttentionCall(site, layout, moment, 16, 16, 1, before, before, before)
    return before, patch.edit_output(call, before, plain_attention, bank)


def test_several_stories_with_free_u_use_it_once() -> None:
    hidden, skip = torch.randn(2, 8, 4, 4), torch.randn(2, 8, 4, 4)
    layout = BatchLayout.from_numbers([0], 2, (8, 8))
    call = BlockCall("output.0", layout, moment_of(3), hidden, skip)
    once = FreeU().edit(call)
    again = FreeU().edit(once)
    assert not torch.equal(once.hidden, hidden) and torch.equal(again.hidden, once.hidden)
    assert not torch.equal(once.skip, skip) and torch.equal(again.skip, once.skip)


def test_a_step_of_no_width_is_blended_as_a_first_one() -> None:
    """Manual sigmas may start far above the schedule's highest: several steps then lie at its top."""
    top = Moment(sigma=20.0, step=1, steps=3, progress=0.0, sigma_at=lambda _: 0.0, ladder=(0.0, 0.0, 0.0, 1.0))
    assert QueryBlend().weight(top) == pytest.approx(0.9, abs=0.1)
