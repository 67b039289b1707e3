"""Pictures shown to a transformer: what goes with them, what is kept of them, and where in a call the host is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from semblance.attention.engine.call import AttentionCall, AttentionSite
from semblance.attention.engine.layout import BatchLayout, Chunk
from semblance.attention.engine.patch import AttentionPatch
from semblance.attention.engine.protocols import AddsToOutput
from semblance.attention.methods.reference_style import ReferenceStyle
from semblance.host.binding.conditions import Conditions
from semblance.host.binding.dit import BoundTransformer
from semblance.host.binding.kept_features import KeptFeatures, keep_features
from semblance.host.binding.model import add_patch, patches_on
from semblance.host.binding.transformer import transformer_of
from semblance.tests.support.reference_styles import picture, styled
from semblance.tests.support.transformers import TRANSFORMERS, sample

SITE = AttentionSite("joint", "single", 0)


def test_what_is_known_of_the_samplers_picture_does_not_go_with_another() -> None:
    mask, dense = torch.ones(2, 1, 8, 8), torch.ones(2, 31, 31)
    named = {"denoise_mask": mask, "concat_mask": mask, "ref_latents": [mask], "attention_mask": dense, "y": mask}
    conditions = Conditions(None, torch.zeros(2, 7, 4), None, named)
    assert set(conditions.for_picture(same_size=True).named) == {"attention_mask", "y"}
    assert set(conditions.for_picture(same_size=False).named) == {"y"}, "a mask of all tokens is of the sampler's size"
    text_mask = replace(conditions, named={"attention_mask": torch.ones(2, 7)})
    assert set(text_mask.for_picture(same_size=False).named) == {"attention_mask"}


def test_of_a_picture_that_went_apart_no_more_is_kept_than_its_features() -> None:
    reference = picture(TRANSFORMERS["flux"])
    patch = styled_patch(reference)
    layer = torch.randn(1, 2, 64, 40)  # what a layer computes at once: query, key and value are views of it
    kept = KeptFeatures()
    parts = (layer[..., 8 * place : 8 * place + 8] for place in range(3))
    keep_features(kept, SITE, {id(patch)}, [(patch, "a")], slice(4, 8), *parts)
    features = kept.at(SITE)[id(patch), "a"]
    assert all(part.untyped_storage().nbytes() == part.numel() * part.element_size() for part in features)


def styled_patch(reference: Any) -> ReferenceStyle:
    patch = patches_on(styled(TRANSFORMERS["flux"].model(), reference))[-1]
    assert isinstance(patch, ReferenceStyle)
    return patch


class Marked(AttentionPatch):
    """Notes the blocks it is asked in."""

    def __init__(self, block: str) -> None:
        self.block, self.came = block, list[str]()

    def applies_to(self, site: AttentionSite, moment: Any) -> bool:
        return site.block == self.block

    def edit_inputs(self, call: AttentionCall, bank: Any) -> AttentionCall:
        self.came.append(call.site.name)
        return call


def test_a_block_that_another_node_skips_does_not_move_the_blocks_after_it() -> None:
    family = TRANSFORMERS["sd35"]
    patch = Marked("double.1")
    model = add_patch(family.model(), patch)
    model.set_model_patch_replace(lambda given, extra: given, "dit", "double_block", 0)
    sample(model, family.conditioning(), family.conditioning(seed=2), family.latent(), steps=1)
    assert set(patch.came) == {"double.1.0.joint"}


def test_a_block_that_runs_twice_begins_again_with_its_first_attention() -> None:
    family = TRANSFORMERS["wan"]
    patch = Marked("single.1")
    model = add_patch(family.model(), patch)

    def twice(given: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        return extra["original_block"]({**given, "img": extra["original_block"](given)["img"]})

    model.set_model_patch_replace(twice, "dit", "double_block", 1)
    sample(model, family.conditioning(), family.conditioning(seed=2), family.latent(), steps=1, cfg=1.0)
    assert patch.came == ["single.1.0.self", "single.1.0.cross"] * 2


class Halves(Marked):
    """Replaces part of what attention gives."""

    def edit_output(self, call: AttentionCall, output: Tensor, attend: Any, bank: Any) -> Tensor:
        return output * 0.5


class Adds(Marked, AddsToOutput):
    """Adds to it, as an adapter does."""

    def edit_output(self, call: AttentionCall, output: Tensor, attend: Any, bank: Any) -> Tensor:
        return output + 1


@pytest.mark.parametrize("first", [Halves, Adds])
def test_what_adds_comes_after_what_replaces_whatever_the_order_of_the_nodes(first: Any) -> None:
    transformer = transformer_of(TRANSFORMERS["flux"].model().model)
    assert transformer is not None
    second = Adds if first is Halves else Halves
    layout = BatchLayout((Chunk("positive"),), 1, (4, 4))
    moment: Any = None
    site = AttentionSite("joint", "single", 1)
    acting: Any = {site: [(first("single.1"), None), (second("single.1"), None)]}
    bound = BoundTransformer(transformer, acting, (1, 2, 2), layout, moment, None)
    query = torch.randn(1, 2, 4, 8)

    def attention(query: Tensor, *rest: Any, **named: Any) -> Tensor:
        return query.transpose(1, 2).flatten(2)

    options = {"block_index": 1, "block_type": "single"}
    made = bound(attention, query, query, query, 2, skip_reshape=True, transformer_options=options)
    assert torch.equal(made, attention(query) * 0.5 + 1)
