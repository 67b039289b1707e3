"""Patches bind around whatever other packs have put at a site, whichever came first."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import comfy.ldm.modules.attention as host_attention
import pytest
import torch
from torch import Tensor

from semblance.attention.engine.bank import FeatureBank
from semblance.attention.engine.call import AttentionCall, AttentionKind
from semblance.attention.engine.patch import Attend
from semblance.attention.engine.scope import Scope
from semblance.host.binding.model import add_patch
from semblance.host.binding.unet_sites import SLOT, attention_sites
from semblance.tests.support.neighbours import Foreigner, Kernel
from semblance.tests.support.speeds import slow_but
from semblance.tests.support.studio import OF_EACH_KIND, PATCHES, STORIES, Studio, record_calls, relative_error
from semblance.tests.support.toy_patches import Blinker, Halve, Sharpen

KINDS: tuple[AttentionKind, ...] = ("self", "cross")
ASKS_TWICE = {("reference style masked", "self")}
"""What mixes the plain attention with another that also goes through the replacement."""


def foreign_sites(studio: Studio, kind: AttentionKind, parts: int) -> set[tuple[Any, ...]]:
    blocks = {"input.4", "middle.0", "output.5"}
    sites = [site for site in attention_sites(studio.model.model.diffusion_model) if site.block in blocks]
    return {(s.part, s.number, s.depth) for s in sites if s.kind == kind and (parts == 2 or s.depth == 0)}


@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [name for name in PATCHES if name not in STORIES])
def test_a_foreign_replacement_may_come_before_or_after(
    sd15: Studio, name: str, kind: AttentionKind, parts: int
) -> None:
    before, after, alone = Foreigner(), Foreigner(), Foreigner()
    ours_last = sd15.sample(sd15.with_patch(name, before.on(sd15.model, kind, parts)), steps=1)
    ours_first = sd15.sample(after.on(sd15.with_patch(name), kind, parts), steps=1)
    assert torch.equal(ours_last, ours_first)
    asked = 2 if (name, kind) in ASKS_TWICE else 1
    expected = dict.fromkeys(foreign_sites(sd15, kind, parts), asked)
    assert dict(before.sites) == dict(after.sites) == expected
    if name != "remembers":  # which has nothing to say in the first step
        assert relative_error(ours_last, sd15.sample(alone.on(sd15.model, kind, parts), steps=1)) > 1e-3
        assert relative_error(ours_last, sd15.patched(name, steps=1)) > 1e-3


@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_foreign_replacement_at_every_depth_is_called_once_a_call(
    studio: Studio, kind: AttentionKind, parts: int
) -> None:
    foreigner = Foreigner()
    model, calls = record_calls(studio.with_patch("edits output", foreigner.on(studio.model, kind, parts)))
    studio.sample(model)
    assert len(calls) == 2
    assert dict(foreigner.sites) == dict.fromkeys(foreign_sites(studio, kind, parts), 2)


@pytest.mark.parametrize("kind", KINDS)
def test_where_both_keys_are_taken_only_the_more_exact_occupant_runs_as_in_comfyui(
    sd15: Studio, kind: AttentionKind
) -> None:
    whole, exact = Foreigner(0.5), Foreigner(0.9)
    sd15.sample(sd15.with_patch("edits output", exact.on(whole.on(sd15.model, kind, 2), kind, 3)), steps=1)
    assert not whole.sites and set(exact.sites.values()) == {1}


def test_the_occupant_gets_the_edited_inputs(sd15: Studio) -> None:
    seen: list[Tensor] = []

    def occupant(query: Tensor, key: Tensor, value: Tensor, extra: dict[str, Any]) -> Tensor:
        seen.append(query)
        return torch.zeros_like(query)

    scope = Scope({"output.5": 1.0})
    model = sd15.model.clone()
    model.set_model_attn2_replace(occupant, "output", 5)
    sd15.sample(model, steps=1)
    sd15.sample(add_patch(model, Sharpen(scope, kinds=("cross",))), steps=1)
    plain, sharpened = seen
    negative, positive = plain[:2], plain[2:]  # ComfyUI sends the negative rows first
    torch.testing.assert_close(sharpened, torch.cat([negative * 0.6, positive * 1.4]))


@pytest.mark.parametrize("name", ["edits inputs", "edits output", "instantstyle", "instantstyle plus", "brings guests"])
def test_a_kernel_override_may_come_before_or_after(studio: Studio, name: str) -> None:
    before, after = Kernel(0.9), Kernel(0.9)
    ours_last = studio.sample(studio.with_patch(name, before.on(studio.model)), steps=1)
    ours_first = studio.sample(after.on(studio.with_patch(name)), steps=1)
    assert torch.equal(ours_last, ours_first)
    assert before.calls == after.calls >= len(studio.model_map.sites)
    assert relative_error(ours_last, studio.patched(name, steps=1)) > 1e-3


def test_every_attention_passes_the_kernel_override_and_each_picture_once_more(sd15: Studio) -> None:
    kernel = Kernel(1.0)
    chosen = sd15.sample(sd15.with_patch("instantstyle regions", kernel.on(sd15.model)), steps=1)
    sites = sd15.model_map.sites
    assert kernel.calls == len(sites) + 2 * sum(site.kind == "cross" for site in sites)
    assert relative_error(chosen, sd15.patched("instantstyle regions", steps=1)) < 1e-6


@pytest.mark.parametrize("name", ["edits output", "instantstyle"])
def test_a_pack_that_hides_the_options_from_attention_still_works(sd15: Studio, name: str) -> None:
    for order in (0, 1):
        foreigner, kernel = Foreigner(hand_on_options=False), Kernel(1.0)
        model = kernel.on(sd15.model)
        model = (
            sd15.with_patch(name, foreigner.on(model, "cross", 2))
            if order
            else foreigner.on(sd15.with_patch(name, model), "cross", 2)
        )
        open_about_it = sd15.sample(sd15.with_patch(name, Foreigner().on(sd15.model, "cross", 2)), steps=1)
        assert relative_error(sd15.sample(model, steps=1), open_about_it) < 1e-6
        assert dict(foreigner.sites) == dict.fromkeys(foreign_sites(sd15, "cross", 2), 1)


def test_attention_rebound_by_another_pack_is_the_one_we_call(sd15: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = host_attention.optimized_attention, Counter[str]()

    def rebound(*tensors: Any, **named: Any) -> Tensor:
        calls["rebound"] += 1
        return original(*tensors, **named)

    model, recorded = record_calls(sd15.with_patch("brings guests"))
    model.set_model_attn1_replace(lambda query, key, value, extra: query, "output", 5)
    monkeypatch.setattr(host_attention, "optimized_attention", rebound)
    sd15.sample(model, steps=1)
    # Every attention but the foreign one, where only the guests attend.
    assert calls["rebound"] == len(sd15.model_map.sites) * len(recorded)


@pytest.mark.parametrize(
    ("first", "second"), slow_but(itertools.permutations(PATCHES, 2), lambda pair: pair[1] in OF_EACH_KIND)
)
def test_two_patches_chain_in_either_order(sd15: Studio, first: str, second: str) -> None:
    chained = sd15.sample(sd15.with_patch(second, sd15.with_patch(first)), steps=1)
    assert torch.isfinite(chained).all()


@pytest.mark.parametrize(("first", "second"), [("instantstyle", "instantstyle plus"), ("edits output", "instantstyle")])
def test_patches_that_add_come_to_the_same_in_either_order(studio: Studio, first: str, second: str) -> None:
    one, other = (
        studio.sample(studio.with_patch(b, studio.with_patch(a))) for a, b in ((first, second), (second, first))
    )
    assert relative_error(one, other) < 1e-4
    assert relative_error(one, studio.patched(first)) > 1e-2


def test_patches_edit_in_the_order_of_their_nodes(sd15: Studio) -> None:
    edits: list[str] = []

    class Mark(Sharpen):
        def edit_inputs(self, call: AttentionCall, bank: FeatureBank) -> AttentionCall:
            edits.append(f"inputs {self.strength:g}")
            return super().edit_inputs(call, bank)

        def edit_output(self, call: AttentionCall, output: Tensor, attend: Attend, bank: FeatureBank) -> Tensor:
            edits.append(f"output {self.strength:g}")
            return output

    model = sd15.model
    for strength in (1, 2, 3):
        model = add_patch(model, Mark(Scope({"output.5": 1.0}), strength, kinds=("cross",)))
    sd15.sample(model, steps=1)
    assert edits == ["inputs 1", "inputs 2", "inputs 3", "output 1", "output 2", "output 3"]


def test_a_patch_sees_what_the_patches_before_it_left(sd15: Studio) -> None:
    halved = Halve(Scope({"output.5": 1.0}), kinds=("cross",))
    keys: list[int] = []
    model = sd15.model.clone()
    model.set_model_attn2_replace(lambda query, key, *_: keys.append(key.shape[1]) or query, "output", 5)
    for _ in range(3):
        sd15.sample(model, steps=1)
        model = add_patch(model, halved)
    assert keys == [77, 38, 19]


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_hides_keys(studio: Studio, kind: AttentionKind) -> None:
    masked = studio.sample(add_patch(studio.model, Blinker(studio.everywhere(), kinds=(kind,))), size=(16, 8))
    gathered = studio.sample(add_patch(studio.model, Halve(studio.everywhere(), kinds=(kind,))), size=(16, 8))
    assert relative_error(masked, gathered) < 1e-4
    assert relative_error(masked, studio.sample(size=(16, 8))) > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_where_another_pack_replaces_attention_is_refused_by_block(sd15: Studio, kind: AttentionKind) -> None:
    model = add_patch(Foreigner().on(sd15.model, kind, 2), Blinker(sd15.everywhere(), kinds=(kind,)))
    with pytest.raises(ValueError, match=r"replaces the attention of input\.4.*Bypass one of them"):
        sd15.sample(model, steps=1)


def test_a_node_that_cuts_the_picture_up_is_refused_in_a_sentence(sd15: Studio) -> None:
    from comfy_extras.nodes_hypertile import HyperTile

    tiled = HyperTile.execute(sd15.model, tile_size=32, swap_size=2, max_depth=0, scale_depth=False)[0]
    seen = r"256 rows of 16 tokens.*4 rows of 32x32\..*patches attn1_patch: comfy_extras\.nodes_hypertile.*Bypass"
    with pytest.raises(ValueError, match=seen):
        sd15.sample(sd15.with_patch("edits output", tiled), size=(32, 32), steps=1)


def test_a_lora_on_the_model_is_kept(sd15: Studio) -> None:
    from semblance.tests.tiny_models import with_lora

    ours_last = sd15.sample(sd15.with_patch("instantstyle", with_lora(sd15.model)), steps=1)
    ours_first = sd15.sample(with_lora(sd15.with_patch("instantstyle")), steps=1)
    assert torch.equal(ours_last, ours_first)
    assert relative_error(ours_last, sd15.patched("instantstyle", steps=1)) > 1e-3
    assert torch.equal(sd15.sample(), sd15.plain)


def test_bound_sites_are_taken_back_after_the_call(sd15: Studio) -> None:
    model = sd15.with_patch("edits output")
    sd15.sample(model, steps=1)
    assert "patches_replace" not in model.model_options["transformer_options"]
    assert set(SLOT.values()) == {"attn1", "attn2"}
