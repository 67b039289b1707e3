"""The laws of ARCHITECTURE.md for Reference Style in eleven families of transformers.

Each law is tried at every change on the families that are bound in ways of their own, and on all by `nox -s laws`.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from comfy.model_management import InterruptProcessingException
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from semblance.attention.engine.bank import FeatureBank
from semblance.attention.engine.patch import AttentionPatch
from semblance.attention.engine.scope import Scope
from semblance.attention.methods.reference_style import Statistics
from semblance.host.binding.model import patches_on
from semblance.host.binding.run import RUN, Run
from semblance.tests.support.endings import Fault, raise_fault, raise_interrupt, tensors_alive
from semblance.tests.support.reference_styles import Call, answered, picture, recorded, sampled, styled
from semblance.tests.support.speeds import TRANSFORMER_NAMES, slow, slow_but
from semblance.tests.support.studio import relative_error
from semblance.tests.support.transformers import TRANSFORMERS, TransformerFamily

QUICK = ("flux", "z_image", "anima", "sd35")
"""Two kinds of blocks; padding and refiners; attention to text apart and frames; attentions that have to be counted."""
ALIKE = 1e-5


def on_families(*quick: str) -> Any:
    """Every family, those that are not quick by `nox -s laws` alone."""
    return pytest.mark.parametrize("family", slow_but(TRANSFORMER_NAMES, quick), indirect=True)


@cache
def tiny(family: TransformerFamily) -> ModelPatcher:
    return family.model()


def with_style(family: TransformerFamily, model: ModelPatcher | None = None, **settings: Any) -> ModelPatcher:
    """Reference Style with statistics, so that every part of it runs."""
    return styled(model or tiny(family), picture(family), **{"statistics": Statistics(0.5, 0.5), **settings})


def overridden(model: ModelPatcher, override: Callable[..., Tensor]) -> ModelPatcher:
    """A clone of `model` on which another pack takes every attention."""
    taken = model.clone()
    taken.model_options["transformer_options"]["optimized_attention_override"] = override
    return taken


def as_it_is(func: Callable[..., Tensor], *arguments: Any, **named: Any) -> Tensor:
    return func(*arguments, **named)


def louder(func: Callable[..., Tensor], query: Tensor, *arguments: Any, **named: Any) -> Tensor:
    return func(1.5 * query, *arguments, **named)


@on_families(*(name for name in TRANSFORMER_NAMES if name != "flux2"))
def test_style_moves_the_picture_and_without_strength_or_scope_leaves_it_and_other_branches_untouched(
    family: TransformerFamily,
) -> None:
    model, plain = tiny(family), sampled(family, tiny(family))
    branch = with_style(family)
    first = sampled(family, branch)
    assert torch.isfinite(first).all() and 1e-3 < relative_error(first, plain) < 3
    assert torch.equal(sampled(family, branch), first)
    for idle in ({"strength": 0.0}, {"scope": Scope({"single.0": 0.0, "double.0": 0.0})}):
        assert torch.equal(sampled(family, with_style(family, **idle)), plain)
    assert patches_on(model) == () and len(patches_on(branch)) == 1
    assert torch.equal(sampled(family, model), plain)


@on_families(*QUICK)
def test_conditionings_sent_one_by_one_give_the_same(family: TransformerFamily, request: pytest.FixtureRequest) -> None:
    together = sampled(family, with_style(family))
    request.getfixturevalue("one_conditioning_a_call")
    model, calls = recorded(tiny(family))
    assert relative_error(sampled(family, with_style(family, model)), together) < ALIKE
    assert [tuple(call.numbers) for call in calls[:2]] == [(1,), (0,)]


@on_families("flux", "anima")
def test_each_side_is_what_it_is_alone_whatever_the_length_of_the_other(family: TransformerFamily) -> None:
    """Texts of different lengths go through most of these models in calls of their own."""
    sides: dict[tuple[int, int], Tensor] = {}
    for texts, cfg in (((7, 7), 3.0), ((7, 5), 3.0), ((7, 7), 1.0)):
        model, calls = recorded(tiny(family))
        sampled(family, with_style(family, model), texts=texts, cfg=cfg, steps=1)
        positive = [one_side(call, 0) for call in calls if 0 in call.numbers]
        assert len(positive) == 1
        sides[texts[1], int(cfg)] = positive[0]
    assert relative_error(sides[5, 3], sides[7, 3]) < ALIKE
    assert relative_error(sides[7, 1], sides[7, 3]) < ALIKE


def one_side(call: Call, number: int) -> Tensor:
    return call.output.unflatten(0, (len(call.numbers), -1))[list(call.numbers).index(number)]


@on_families("flux", "anima")
def test_the_order_of_conditionings_is_no_matter(family: TransformerFamily) -> None:
    recording, calls = recorded(tiny(family))
    model = with_style(family, recording)
    sampled(family, model, steps=1)
    turned = answered(model, calls[0], [1, 0], calls[0].numbers[::-1])
    assert relative_error(turned.flip(0), answered(model, calls[0], [0, 1], calls[0].numbers)) < ALIKE


@pytest.mark.parametrize("size", [(9, 13), slow(((6, 14),))], ids=["9x13", "6x14"])
@on_families(*QUICK)
def test_each_image_of_a_batch_comes_out_as_it_would_alone(family: TransformerFamily, size: tuple[int, int]) -> None:
    recording, calls = recorded(tiny(family))
    model = styled(recording, picture(family, size=size), picture(family, "b", seed=6), statistics=Statistics(0.5, 0.5))
    sampled(family, model, size, images=3, steps=1)
    batch = calls[0]
    assert len(batch.x) == 6 and torch.isfinite(batch.output).all()
    together = answered(model, batch, range(6), batch.numbers)
    for image in range(3):
        alone = answered(model, batch, [image, 3 + image], batch.numbers)
        assert relative_error(together[[image, 3 + image]], alone) < ALIKE


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@on_families("flux", "sd35")
def test_half_precision_is_kept(family: TransformerFamily, dtype: torch.dtype) -> None:
    def dtypes(model: ModelPatcher) -> tuple[set[torch.dtype], Tensor]:
        seen: set[torch.dtype] = set()

        def look(func: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor, *rest: Any, **named: Any):
            output = func(query, key, value, *rest, **named)
            seen.update((query.dtype, key.dtype, value.dtype, output.dtype))
            return output

        made = sampled(family, overridden(model, look), steps=1)
        return seen, made

    model = family.model(dtype=dtype)
    plain, _ = dtypes(model)
    half, made = dtypes(with_style(family, model))
    riding = sampled(family, with_style(family, model), steps=1)
    assert half == plain and torch.isfinite(made).all() and torch.isfinite(riding).all()
    single = sampled(family, with_style(family), steps=1)
    assert relative_error(riding, single) < 0.1


@on_families("flux", "anima")
def test_two_references_in_either_order_are_another_style_than_one(family: TransformerFamily) -> None:
    one, two = picture(family), picture(family, "b", seed=6)
    both, turned, alone = (
        sampled(family, styled(tiny(family), *shown), steps=1) for shown in ((one, two), (two, one), (one,))
    )
    assert relative_error(both, turned) < ALIKE < 1e-3 < relative_error(both, alone)


@on_families(*QUICK)
def test_a_reference_that_goes_apart_gives_what_it_gives_as_a_row(family: TransformerFamily) -> None:
    """Another pack's override keeps it apart, since it may count the rows of a call."""
    prompt = family.conditioning(9, seed=4)
    for settings in ({}, {"texts": (9, 7), "prompt": prompt}):
        texts = {"texts": settings["texts"]} if "texts" in settings else {}
        method = styled(tiny(family), picture(family, prompt=settings.get("prompt")), statistics=Statistics(0.5, 0.5))
        riding = sampled(family, method, steps=1, **texts)
        assert relative_error(sampled(family, overridden(method, as_it_is), steps=1, **texts), riding) < ALIKE


@on_families("flux", "wan")
def test_a_reference_of_another_size_and_with_a_longer_prompt_moves_the_picture(family: TransformerFamily) -> None:
    plain = sampled(family, tiny(family), steps=1)
    made = [
        sampled(family, styled(tiny(family), one), steps=1)
        for one in (
            picture(family),
            picture(family, size=(12, 6)),
            picture(family, prompt=family.conditioning(11, seed=4)),
            picture(family, size=(6, 12), prompt=family.conditioning(7, seed=4)),
        )
    ]
    for number, one in enumerate(made):
        assert torch.isfinite(one).all() and relative_error(one, plain) > 1e-3
        assert all(relative_error(one, other) > 1e-4 for other in made[:number])


@on_families("flux", "anima")
def test_another_packs_override_before_or_after_is_kept(family: TransformerFamily) -> None:
    before = with_style(family, overridden(tiny(family), louder))
    after = overridden(with_style(family), louder)
    alone = sampled(family, overridden(tiny(family), louder))
    made = sampled(family, before)
    assert torch.equal(sampled(family, after), made)
    assert relative_error(made, alone) > 1e-3 and relative_error(made, sampled(family, with_style(family))) > 1e-3
    idle = with_style(family, overridden(tiny(family), louder), strength=0.0)
    assert torch.equal(sampled(family, idle), alone)


@pytest.mark.parametrize("name", ["flux", slow("chroma")])
def test_another_packs_patch_on_flux_blocks_acts_on_the_images_alone(name: str) -> None:
    family = TRANSFORMERS[name]

    def patch(q: Tensor, k: Tensor, v: Tensor, pe: Any = None, attn_mask: Any = None, extra_options: Any = None):
        rows.append(len(q))
        return {"q": 1.5 * q, "k": k, "v": v, "pe": pe, "attn_mask": attn_mask}

    def patched(model: ModelPatcher) -> ModelPatcher:
        clone = model.clone()
        clone.set_model_attn1_patch(patch)
        return clone

    rows: list[int] = []
    alone = sampled(family, patched(tiny(family)), steps=1)
    assert torch.equal(sampled(family, patched(with_style(family, strength=0.0)), steps=1), alone)
    made = sampled(family, patched(with_style(family)), steps=1)
    assert torch.equal(sampled(family, with_style(family, patched(tiny(family))), steps=1), made)
    assert set(rows) == {2}  # it may count them
    assert relative_error(made, alone) > 1e-3
    assert relative_error(made, sampled(family, with_style(family), steps=1)) > 1e-3


@pytest.mark.parametrize("end", [None, raise_fault, raise_interrupt])
@on_families("flux")
def test_nothing_is_left_of_a_run_however_it_ends(
    family: TransformerFamily, end: Callable[..., None] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, banks = with_style(family), list[weakref.ref[FeatureBank]]()
    expected, bank_of = sampled(family, model), Run.bank_of

    def noted(run: Run, patch: AttentionPatch) -> FeatureBank:
        bank = bank_of(run, patch)
        banks.append(weakref.ref(bank))
        return bank

    def finish(*progress: Any) -> None:
        assert len(banks[-1]() or ()) > 0
        if end is not None:
            end(*progress)

    monkeypatch.setattr(Run, "bank_of", noted)
    if end is None:
        sampled(family, model, callback=finish)
    else:
        with pytest.raises((Fault, InterruptProcessingException)) as caught:
            sampled(family, model, callback=finish)
        assert all(not bank() for bank in banks)  # the traceback still holds the run's frames
        del caught
    assert RUN not in model.model_options["transformer_options"]
    gc.collect()
    assert banks and all(bank() is None for bank in banks)
    assert torch.equal(sampled(family, model), expected)


@pytest.mark.parametrize("family", ["flux", slow("z_image"), slow("sd35")], indirect=True)
def test_twenty_runs_keep_no_tensor(family: TransformerFamily) -> None:
    apart = picture(family, "b", size=(6, 6))
    model = styled(tiny(family), picture(family), apart, statistics=Statistics(0.5, 0.5), strength=0.5)

    def run(times: int) -> None:
        for _ in range(times):
            sampled(family, model, steps=1)

    run(3)
    before = tensors_alive()
    run(20)
    assert tensors_alive() == before
