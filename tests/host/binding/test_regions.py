"""Regional prompts by other packs: with one prompt for all regions every method equals itself without regions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from node_helpers import conditioning_set_values
from torch import Tensor

from semblance.attention.engine.layout import BatchLayout, Chunk
from semblance.host.binding.conditionings import TAG
from semblance.host.binding.model import add_patch
from semblance.host.binding.regions import Regions
from semblance.tests.support.regions import COUPLES, AttentionCouple
from semblance.tests.support.speeds import slow, slow_but
from semblance.tests.support.studio import PATCHES, STORY, Studio, painted, relative_error
from semblance.tests.support.toy_patches import Diary

ADDS_COPIES_UP = ("remembers",)
EVERY = [name for name in PATCHES if name not in ADDS_COPIES_UP]
QUICK = ("instantstyle regions", "styleid masked", "consistory")
every_couple = pytest.mark.parametrize("couple", COUPLES.values(), ids=COUPLES)


@every_couple
@pytest.mark.parametrize("name", slow_but(EVERY, lambda name: name in QUICK))
def test_one_prompt_for_both_regions_is_as_good_as_none(sd15: Studio, name: str, couple: Any) -> None:
    before, after = couple(), couple()
    seen = sd15.sample(sd15.with_patch(name, before.on(sd15.model)))
    assert before.folded
    assert relative_error(seen, sd15.patched(name)) < 1e-5
    assert torch.equal(seen, sd15.sample(after.on(sd15.with_patch(name))))


@every_couple
@pytest.mark.parametrize("case", [slow("three regions"), slow("CFG 1"), slow("two positives"), "apart"])
def test_rows_are_told_apart_however_many_there_are(
    sd15: Studio, couple: Any, case: str, request: pytest.FixtureRequest
) -> None:
    settings: dict[str, Any] = {}
    if case == "CFG 1":
        settings["cfg"] = 1.0
    elif case == "two positives":
        settings["positive"] = [*sd15.text(3), *sd15.text(4, tokens=154)]
    elif case == "apart":
        request.getfixturevalue("one_conditioning_a_call")
    regions = couple([None] * (3 if case == "three regions" else 2))
    mask = painted(2, 40, 56)
    styled = add_patch(sd15.model, sd15.instantstyle(scope=sd15.everywhere(mask=mask)))
    styled = sd15.with_patch("styleid masked", styled)
    assert relative_error(sd15.sample(regions.on(styled), **settings), sd15.sample(styled, **settings)) < 1e-5


@every_couple
@pytest.mark.parametrize("tokens", [slow(77), 154])
def test_each_region_reads_its_own_prompt_beside_guests(sd15: Studio, couple: Any, tokens: int) -> None:
    """Guests bring texts of 77 tokens, and do not notice that a region's is longer."""
    texts = [None, sd15.text(6, tokens=tokens)[0][0]]
    alone = sd15.sample(couple(texts).on(sd15.model))
    idle = sd15.sample(couple(texts).on(sd15.with_patch("styleid", strength=1e-6)))
    assert relative_error(idle, alone) < 1e-4
    assert relative_error(alone, sd15.plain) > 1e-3
    both = [sd15.sample(couple(texts).on(sd15.with_patch(name))) for name in ("styleid", "instantstyle masked")]
    assert all(torch.isfinite(sampled).all() and relative_error(sampled, alone) > 1e-3 for sampled in both)


def test_a_story_finds_its_subject_in_the_rows_that_read_it(sd15: Studio) -> None:
    """The other region's words stand at other tokens; the masks come from the story's own text."""
    other = sd15.text(6)[0][0]
    marked = conditioning_set_values(sd15.positive, {TAG: STORY.text})
    told = sd15.sample(AttentionCouple([None, other]).on(sd15.with_patch("consistory")), positive=marked)
    assert relative_error(told, sd15.sample(AttentionCouple([None, other]).on(sd15.model))) > 1e-3
    with pytest.raises(ValueError, match="^Regional prompts put other texts.*AttentionCouple.repeat.*Set Mask"):
        sd15.sample(AttentionCouple([other, other]).on(sd15.with_patch("consistory")), positive=marked)


def test_rows_that_nothing_tells_of_are_refused_with_another_way_to_region_prompts(sd15: Studio) -> None:
    def one_more(hidden: Tensor, context: Tensor, value: Tensor, extra: Any) -> tuple[Tensor, ...]:
        return tuple(torch.cat([part, part[-1:]]) for part in (hidden, context, value))

    model = sd15.with_patch("instantstyle").clone()
    model.set_model_attn2_patch(one_more)
    model.set_model_attn2_output_patch(lambda output, extra: output[:-1])
    with pytest.raises(
        ValueError, match=r"5 rows of 64 .* 4 rows .*one_more.*attention couple.*Conditioning \(Set Mask"
    ):
        sd15.sample(model)


@pytest.mark.parametrize(
    ("numbers", "note", "expected"),
    [
        ((1, 0), [1, 0, 0], "npp"),
        ((0, 1), [0, 0, 0, 1], "pppn"),
        ((0, 0), [0, 0, 0, 0], "ppqq"),
        ((1, 0), [1, 1, 0], "nnp"),
        ((1, 0, 1), [1, 0, 0, 1], "nppm"),
        ((1, 0), None, "npp"),
        ((1,), None, "nnn"),
        ((1, 0, 0), [1, 0, 0, 0], ""),
        ((0, 0), None, ""),
    ],
)
def test_notes_say_whose_rows_are_whose(numbers: tuple[int, ...], note: Any, expected: str) -> None:
    names = {"p": Chunk("positive"), "q": Chunk("positive", tag="q"), "n": Chunk("negative"), "m": Chunk("empty")}
    letters = {(1, 0): "np", (0, 1): "pn", (0, 0): "pq", (1, 0, 1): "npm", (1,): "n", (1, 0, 0): "npq"}[numbers]
    layout = BatchLayout(tuple(names[letter] for letter in letters), 2, (8, 8))
    rows = 2 * (len(note) if note else 3)
    found = Regions(numbers).layout_of(layout, rows, {} if note is None else {"its_cond_or_uncond": note}, None)
    assert (found.chunks if found else ()) == tuple(names[letter] for letter in expected)


@pytest.mark.parametrize("name", ["instantstyle", "styleid masked", "consistory"])
def test_all_patches_of_a_block_get_one_and_the_same_options(sd15: Studio, name: str) -> None:
    seen: dict[tuple[Any, ...], set[int]] = {}
    kept: list[Any] = []  # so that no two share an id

    def see(extra: dict[str, Any], given: Any) -> Any:
        calls = extra.setdefault("calls", [])
        kept.append((extra, calls))
        seen.setdefault((id(calls), *extra["block"], extra["block_index"]), set()).add(id(extra))
        calls.append(given)
        return given

    def attends(query: Tensor, key: Tensor, value: Tensor, extra: dict[str, Any]) -> Tensor:
        from comfy.ldm.modules.attention import optimized_attention

        see(extra, "replaced")
        assert extra["activations_shape"][0] == len(query)
        return optimized_attention(query, key, value, extra["n_heads"])

    model = sd15.with_patch(name).clone()
    for setter in (model.set_model_attn1_patch, model.set_model_attn2_patch):
        setter(lambda hidden, context, value, extra: (see(extra, "in") and hidden, context, value))
    for setter in (model.set_model_attn1_output_patch, model.set_model_attn2_output_patch):
        setter(lambda output, extra: see(extra, "out") and output)
    for replace in (model.set_model_attn1_replace, model.set_model_attn2_replace):
        replace(attends, "output", 5)
    sd15.sample(model, steps=2)
    assert all(len(options) == 1 for options in seen.values())
    assert max(len(calls) for _, calls in kept) >= 6


def test_the_layout_of_a_diary_holds_every_copy(sd15: Studio) -> None:
    diary = Diary(sd15.everywhere(), kinds=("cross",))
    sd15.sample(COUPLES["a note aside"]().on(add_patch(sd15.model, diary)), steps=1)
    assert {tuple(chunk.role for chunk in layout.chunks) for layout in diary.layouts} == {
        ("negative", "positive", "positive")
    }
