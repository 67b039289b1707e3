"""Which of the attentions in a block are the block's own, and which another pack's that come past us there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import comfy.supported_models
import pytest
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.model_patcher import ModelPatcher
from torch import Generator, Tensor

from semblance.attention.engine.call import AttentionCall, AttentionSite
from semblance.attention.engine.patch import AttentionPatch
from semblance.attention.methods.reference_style import Statistics
from semblance.host.binding.model import add_patch
from semblance.host.binding.transformer import transformer_of
from semblance.host.binding.whereabouts import Whereabouts
from semblance.tests.support.reference_styles import picture, sampled, styled
from semblance.tests.support.studio import relative_error
from semblance.tests.support.transformers import TRANSFORMERS, TransformerFamily

STATISTICS = Statistics(0.5, 0.5)
TOKENS = 5
"""Of the adapter's picture."""


@cache
def tiny(family: TransformerFamily) -> ModelPatcher:
    return family.model()


def adapted(query: Tensor, heads: int, told: Any, seen: list[Tensor]) -> Tensor:
    """What an image adapter's own attention gives, of unpacked heads or packed ones; noted too."""
    shape = (1, heads, TOKENS, query.shape[-1]) if query.ndim == 4 else (1, TOKENS, query.shape[-1])
    token = torch.randn(shape, generator=Generator().manual_seed(7)).expand(len(query), *shape[1:])
    made = optimized_attention(query, token, token, heads, skip_reshape=query.ndim == 4, transformer_options=told)
    seen.append(made)
    return made


def with_adapter(model: ModelPatcher, hook: str, tells: bool, seen: list[Tensor]) -> ModelPatcher:
    """An adapter that asks the host for an attention of its own in one of the lists around the block's."""
    queries: list[Tensor] = []

    def before(query: Tensor, key: Tensor, value: Tensor, **named: Any) -> dict[str, Any]:
        queries.append(query)
        if hook == "attn1_patch":
            adapted(query, query.shape[1] if query.ndim == 4 else 2, named["extra_options"] if tells else {}, seen)
        return {"q": query, "k": key, "v": value, **{name: named[name] for name in ("pe", "attn_mask")}}

    def after(output: Tensor, extra: dict[str, Any]) -> Tensor:
        query = queries.pop()
        return output + adapted(query, query.shape[1], extra if tells else {}, seen)

    carrying = model.clone()
    carrying.set_model_attn1_patch(before)
    if hook == "attn1_output_patch":
        carrying.set_model_attn1_output_patch(after)
    return carrying


@pytest.mark.parametrize(
    ("family", "hook"),
    [("flux", "attn1_patch"), ("flux", "attn1_output_patch"), ("anima", "attn1_patch")],
    indirect=["family"],
)
def test_an_attention_of_another_pack_inside_a_block_does_not_look_at_the_references(
    family: TransformerFamily, hook: str
) -> None:
    """Packs hand the options on so that the user's kernel runs, and come past our override by that."""
    made: dict[bool, Tensor] = {}
    seen: dict[bool, list[Tensor]] = {True: [], False: []}
    for tells in (True, False):
        model = with_adapter(styled(tiny(family), picture(family), statistics=STATISTICS), hook, tells, seen[tells])
        made[tells] = sampled(family, model, steps=1)
    assert relative_error(made[True], made[False]) < 1e-5
    assert len(seen[True]) > 2
    assert all(relative_error(told, quiet) < 1e-5 for told, quiet in zip(seen[True], seen[False], strict=True))
    plain = with_adapter(tiny(family), hook, True, [])
    assert relative_error(made[True], sampled(family, plain, steps=1)) > 1e-3, "the block's own still look at them"


def test_an_adapter_in_a_block_of_sd35_is_not_taken_for_its_second_attention() -> None:
    """Its adapters stand in the block's slot, where their queries are the picture's alone."""
    family = TRANSFORMERS["sd35"]
    made: list[Tensor] = []
    for tells in (True, False):
        model = styled(tiny(family), picture(family), statistics=STATISTICS).clone()

        options: list[Any] = []

        def block(given: dict[str, Any], extra: dict[str, Any], told: list[Any] = options, tells: bool = tells) -> Any:
            out = extra["original_block"](given)
            return {**out, "img": out["img"] + adapted(out["img"], 2, told[-1] if tells else {}, [])}

        model.set_model_patch_replace(block, "dit", "double_block", 0)
        model.add_wrapper_with_key("apply_model", "notes options", noting(options))
        made.append(sampled(family, model, steps=1))
    assert relative_error(*made) < 1e-5


def noting(options: list[Any]) -> Callable[..., Tensor]:
    def wrapper(executor: Any, *arguments: Any, **named: Any) -> Tensor:
        options.append(arguments[5])
        return executor(*arguments, **named)

    return wrapper


def where(family: TransformerFamily, *lengths: tuple[int, int], heads: tuple[int, int] = (2, 2)) -> list[str | None]:
    """The kinds of the attentions of block 0 with so many queries and keys, 16 of them the picture's."""
    transformer = transformer_of(tiny(family).model)
    assert transformer is not None
    whereabouts, kinds = Whereabouts(transformer, 16), list[str | None]()
    for queries, keys in lengths:
        query, key = torch.empty(1, heads[0], queries, 8), torch.empty(1, heads[1], keys, 8)
        site = whereabouts.site({"block_index": 0, "block_type": "double"}, query, key)
        kinds.append(site.kind if site else None)
    return kinds


def test_appended_and_grouped_keys_and_shorter_texts_are_a_blocks_own() -> None:
    flux, krea, wan = (TRANSFORMERS[name] for name in ("flux", "krea2", "wan"))
    assert where(flux, (23, 5), (23, 23), (23, 5)) == [None, "joint", None]
    assert where(flux, (23, 30)) == ["joint"], "another pack appended keys"
    assert where(krea, (23, 23), heads=(4, 2)) == ["joint"]
    assert where(wan, (16, 16), (16, 7), (16, 16), (16, 512)) == ["self", "cross"] * 2
    assert where(wan, (16, 5), (16, 16), (16, 7)) == [None, "self", "cross"]


def test_a_block_number_that_the_model_does_not_have_is_no_site() -> None:
    transformer = transformer_of(tiny(TRANSFORMERS["flux"]).model)
    assert transformer is not None
    query = torch.empty(1, 2, 23, 8)
    options = {"block_index": 99, "block_type": "double"}
    assert Whereabouts(transformer, 16).site(options, query, query) is None


class Sites(AttentionPatch):
    """Notes what comes to one block."""

    def __init__(self) -> None:
        self.came: list[tuple[str, int]] = []

    def applies_to(self, site: AttentionSite, moment: Any) -> bool:
        return site.block == "single.1"

    def edit_inputs(self, call: AttentionCall, bank: Any) -> AttentionCall:
        self.came.append((call.site.kind, call.key.shape[-2]))
        return call


def test_the_text_of_wan_i2v_is_not_taken_for_the_picture_where_both_are_of_one_length() -> None:
    """Its blocks attend three times: the picture to itself, to the picture it begins with, and to text."""
    text = 7
    family = replace(
        TRANSFORMERS["wan"],
        supported=comfy.supported_models.WAN21_I2V,
        config={**TRANSFORMERS["wan"].config, "model_type": "i2v", "in_dim": 36},
    )
    shown: Any = type("Shown", (), {})()
    shown.penultimate_hidden_states = torch.randn(1, 257, 1280, generator=Generator().manual_seed(1))
    begins = {"concat_latent_image": family.latent(1, 2, 2 * text, seed=2)["samples"], "clip_vision_output": shown}
    texts = {side: family.conditioning(text, seed=1, **begins) for side in ("positive", "negative")}
    patch = Sites()
    sampled(family, add_patch(family.model(), patch), (2, 2 * text), steps=1, cfg=1.0, **texts)
    assert patch.came == [("self", text), ("cross", 257), ("cross", text)]
