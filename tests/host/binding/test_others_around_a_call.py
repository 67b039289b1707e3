"""Pictures that a patch shows ride beside the sampler's rows only where no other pack's function could count them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy_api.torch_helpers.torch_compile import set_torch_compile_wrapper
from comfy_extras.nodes_easycache import easycache_forward_wrapper
from torch import Tensor

from semblance.attention.engine.guests import ShownPicture
from semblance.attention.engine.moment import RunPlan
from semblance.attention.methods.reference_style import ReferenceStyle, Statistics
from semblance.host.binding.model import add_patch, patches_on
from semblance.host.binding.neighbours import others_call
from semblance.tests.support.reference_styles import everywhere, picture, recorded, sampled, styled
from semblance.tests.support.studio import Studio, relative_error
from semblance.tests.support.transformers import TRANSFORMERS, TransformerFamily
from semblance.tests.support.windows import windowed

STATISTICS = Statistics(0.5, 0.5)
COUNTED = pytest.mark.parametrize("family", ["flux", "wan"], indirect=True)
Change = Callable[[ModelPatcher], ModelPatcher]


@cache
def tiny(family: TransformerFamily) -> ModelPatcher:
    return family.model()


@contextmanager
def rows_seen(module: torch.nn.Module) -> Iterator[list[int]]:
    """The rows of every call of a module."""
    rows: list[int] = []
    hook = module.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    try:
        yield rows
    finally:
        hook.remove()


class Noting(ReferenceStyle):
    """Notes whether its pictures are expected to go apart."""

    def check(self, plan: RunPlan) -> None:
        NOTED[self] = plan.pictures_apart


NOTED: WeakKeyDictionary[Noting, bool] = WeakKeyDictionary()


def rides(family: TransformerFamily, change: Change, **settings: Any) -> bool:
    """Whether a picture of the sampler's size rides on a changed model, as the plan of the run has it too."""
    patch = Noting((picture(family),), everywhere(tiny(family)))
    model = change(add_patch(tiny(family), patch))
    with rows_seen(model.model.diffusion_model) as rows:
        sampled(family, model, steps=1, **settings)
    assert set(rows) in ({2}, {4}), rows
    assert NOTED[patch] == (set(rows) == {2})
    return set(rows) == {4}


def wrapping(kind: str) -> Change:
    """A pack's wrapper that makes the conditional rows louder, as `cond_or_uncond` tells them."""

    def wrapper(executor: Any, x: Tensor, *rest: Any, **named: Any) -> Tensor:
        told = next(one for one in (*rest, *named.values()) if isinstance(one, dict) and "cond_or_uncond" in one)
        parts = list(x.chunk(len(told["cond_or_uncond"])))
        return executor(torch.cat([parts[0] * 1.2, *parts[1:]]), *rest, **named)

    def change(model: ModelPatcher) -> ModelPatcher:
        wrapped = model.clone()
        wrapped.add_wrapper_with_key(kind, "another pack", wrapper)
        return wrapped

    return change


def halving(model: ModelPatcher) -> ModelPatcher:
    """A pack's method in the place of a block's, for which the first half of the rows is the conditional one."""
    changed, module = model.clone(), model.model.diffusion_model
    names = ("double_blocks.0.img_mlp",) if hasattr(module, "double_blocks") else ("blocks.1.ffn",)
    for name in names:
        own = module.get_submodule(name).forward

        def forward(x: Tensor, own: Callable[[Tensor], Tensor] = own) -> Tensor:
            if len(x) == 1:
                return own(x)
            first, second = x.chunk(2)
            return torch.cat([own(first) * 1.3, own(second)])

        changed.add_object_patch(f"diffusion_model.{name}.forward", forward)
    return changed


OTHERS = pytest.mark.parametrize(
    "change",
    [wrapping(WrappersMP.DIFFUSION_MODEL), wrapping(WrappersMP.APPLY_MODEL), halving],
    ids=["around the network", "around its call", "inside the network"],
)


@OTHERS
@COUNTED
def test_pictures_go_apart_where_another_packs_function_may_count_rows(
    family: TransformerFamily, change: Change
) -> None:
    assert rides(family, lambda model: model)
    assert not rides(family, change)
    made = sampled(family, change(styled(tiny(family), picture(family), statistics=STATISTICS)), steps=1)
    one_by_one = change(in_groups_of_one(styled(tiny(family), picture(family), statistics=STATISTICS)))
    assert relative_error(made, sampled(family, one_by_one, steps=1)) < 1e-5
    assert relative_error(made, sampled(family, change(tiny(family)), steps=1)) > 1e-3


def in_groups_of_one(model: ModelPatcher) -> ModelPatcher:
    """`model` with an override of another pack's that does nothing: pictures are known to go apart beside it."""
    changed = model.clone()
    changed.model_options["transformer_options"]["optimized_attention_override"] = lambda func, *given, **named: func(
        *given, **named
    )
    return changed


def test_on_a_unet_they_go_apart_too(sd15: Studio) -> None:
    generator = torch.Generator().manual_seed(5)
    clean, noise = (torch.randn(1, 4, 8, 8, generator=generator) for _ in range(2))
    patch = Noting((ShownPicture("a", clean, noise),), sd15.everywhere())
    made: list[Tensor] = []
    # Two images have four rows, and a picture two.
    for change, expected in ((lambda model: model, {6}), (wrapping(WrappersMP.DIFFUSION_MODEL), {2, 4})):
        model = change(add_patch(sd15.model, patch))
        with rows_seen(model.model.diffusion_model.input_blocks[0][0]) as rows:
            made.append(sd15.sample(model, steps=1))
        assert set(rows) == expected and NOTED[patch] == (expected != {6})
    assert relative_error(*made) > 1e-3


def outside(model: ModelPatcher) -> ModelPatcher:
    """A wrapper of another pack that stands before ours is called with the sampler's rows."""
    recording, _ = recorded(tiny(TRANSFORMERS["flux"]))
    return add_patch(recording, *patches_on(model))


def tuned(model: ModelPatcher) -> ModelPatcher:
    changed, name = model.clone(), "single_blocks.0.linear2.weight"
    change = torch.full_like(model.model.diffusion_model.get_parameter(name), 0.01)
    changed.add_patches({f"diffusion_model.{name}": ("diff", (change,))})
    return changed


def compiled(model: ModelPatcher) -> ModelPatcher:
    changed = model.clone()
    set_torch_compile_wrapper(changed, backend="eager")
    return changed


def settled(model: ModelPatcher) -> ModelPatcher:
    """As the host's node for Kontext sets how the pictures to edit are placed."""
    changed = model.clone()
    changed.add_object_patch("diffusion_model.params.default_ref_method", "index_timestep_zero")
    return changed


@pytest.mark.parametrize("change", [outside, tuned, compiled, settled, windowed])
def test_loras_and_what_the_host_itself_does_put_no_picture_apart(change: Change) -> None:
    assert rides(TRANSFORMERS["flux"], change)


def test_the_hosts_own_wrappers_are_told_by_where_they_were_made() -> None:
    def others(*made: Any) -> bool:
        keyed = {name: [wrapper] for name, wrapper in zip("ab", made, strict=False)}
        return others_call(None, {"wrappers": {WrappersMP.DIFFUSION_MODEL: keyed}})

    def as_loaded() -> None: ...

    as_loaded.__module__ = "/opt/ComfyUI/comfy_extras/nodes_easycache"  # the host loads its nodes by their paths
    assert not others(easycache_forward_wrapper) and not others(as_loaded)
    as_loaded.__module__ = "/opt/comfy/custom_nodes/another"
    assert others(as_loaded) and others(easycache_forward_wrapper, as_loaded)


def by_span(func: Callable[..., Tensor], query: Tensor, *given: Any, **named: Any) -> Tensor:
    """Another pack's attention that makes the queries of the image louder, where the host tells them."""
    return func(louder(query, named["transformer_options"].get("img_slice")), *given, **named)


def louder(query: Tensor, span: Sequence[int] | None) -> Tensor:
    if span is None:
        return query
    start, end = span
    return torch.cat([query[..., :start, :], query[..., start:end, :] * 1.5, query[..., end:, :]], dim=-2)


def by_list(query: Tensor, key: Tensor, value: Tensor, **named: Any) -> dict[str, Any]:
    """The same in the list before an attention, which has the whole sequence."""
    extra = named.pop("extra_options")
    span = extra.get("img_slice") if extra["block_type"] == "single" else None
    return {"q": louder(query, span), "k": key, "v": value, **named}


@pytest.mark.parametrize("edits", [False, True])
def test_an_override_that_works_by_spans_of_tokens_finds_them_in_the_pieces_it_is_given(edits: bool) -> None:
    """Text before the picture, the picture, and the tokens behind it attend each by themselves beside a reference."""
    family = TRANSFORMERS["flux"]
    spanned, listed = tiny(family).clone(), tiny(family).clone()
    spanned.model_options["transformer_options"]["optimized_attention_override"] = by_span
    listed.set_model_attn1_patch(by_list)
    shown = {"reference_latents": [family.latent(1, 4, 6, seed=11)["samples"]]} if edits else {}
    texts = {side: family.conditioning(seed=seed, **shown) for side, seed in (("positive", 1), ("negative", 2))}
    assert relative_error(sampled(family, spanned, steps=1, **texts), sampled(family, listed, steps=1, **texts)) < 1e-5
    made = [sampled(family, styled(one, picture(family)), steps=1, **texts) for one in (spanned, listed)]
    assert relative_error(*made) < 1e-5
    assert relative_error(made[0], sampled(family, styled(tiny(family), picture(family)), steps=1, **texts)) > 1e-3
