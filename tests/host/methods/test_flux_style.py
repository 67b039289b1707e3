"""IP-Adapters on Flux equal blocks that are written out with the adapter in them, in both published forms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comfy.model_management import InterruptProcessingException
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from semblance.attention.adapters.checkpoint import flatten
from semblance.attention.engine.guests import ShownPicture
from semblance.attention.engine.scope import ScheduleWindow, Scope
from semblance.attention.methods.reference_style import ReferenceStyle
from semblance.attention.references.style import StyleReference
from semblance.host.binding.model import add_patch, patches_on
from semblance.host.each_block import WAYS, each_block
from semblance.host.instantstyle.adapter import manage_adapter
from semblance.host.instantstyle.applying import map_styled
from semblance.host.instantstyle.encoding import EncodedStyle
from semblance.tests.support.endings import Fault, tensors_alive
from semblance.tests.support.flux_blocks import rewritten
from semblance.tests.support.flux_styles import (
    BOTH_FORMS,
    CHANGED,
    FLUX,
    SAME,
    adapter_of,
    sampled,
    style_of,
    styled,
    written,
)
from semblance.tests.support.studio import relative_error
from semblance.tests.support.transformers import TRANSFORMERS
from semblance.tests.tiny_models import FLUX_FORMS, adapter_state_dict, flux_adapter_state_dict, make_unet
from semblance.tests.tiny_models.flux_adapters import FluxForm


@BOTH_FORMS
@pytest.mark.parametrize("size", [(8, 8), (10, 6), (9, 7)], ids=["square", "wide", "odd"])
def test_a_style_equals_blocks_rewritten_with_the_adapter(form: FluxForm, size: tuple[int, int]) -> None:
    style = style_of(adapter_of(form))
    found = sampled(styled(FLUX.model(), style, strength=0.7), size=size)
    expected = sampled(rewritten(FLUX, [written(style, 0.7)]), size=size)
    assert relative_error(found, expected) <= SAME
    assert relative_error(found, sampled(FLUX.model(), size=size)) > CHANGED


def test_the_page_is_flux_where_no_adapter_is_in_it() -> None:
    assert relative_error(sampled(rewritten(FLUX, [])), sampled(FLUX.model())) <= SAME


@BOTH_FORMS
@pytest.mark.parametrize("tokens", [7, 5], ids=["together", "apart"])
def test_each_side_of_guidance_sees_its_own_pictures(form: FluxForm, tokens: int) -> None:
    style = style_of(adapter_of(form))
    conds = {"positive": FLUX.conditioning(), "negative": FLUX.conditioning(tokens, seed=2), "cfg": 3.0}
    found = sampled(styled(FLUX.model(), style), **conds)
    if tokens == 7:  # ComfyUI puts the negative first
        expected = sampled(rewritten(FLUX, [written(style, sides=(False, True))]), **conds)
        assert relative_error(found, expected) <= SAME
        return
    # Each side in a call of its own, so the page's tokens may be those of one side alone at cfg 1.
    alone = sampled(styled(FLUX.model(), style), positive=conds["positive"])
    assert relative_error(alone, sampled(rewritten(FLUX, [written(style)]))) <= SAME
    swapped = {"positive": conds["negative"], "negative": conds["positive"], "cfg": 0.0, "steps": 1}
    negative = sampled(styled(FLUX.model(), style), **swapped)
    expected = sampled(rewritten(FLUX, [written(style, sides=(False,))]), positive=conds["positive"], cfg=1.0, steps=1)
    assert relative_error(negative, expected) <= SAME


@BOTH_FORMS
def test_block_weights_choose_the_blocks_of_the_page(form: FluxForm) -> None:
    style = style_of(adapter_of(form))
    chosen = ("double.1", "single.0") if form == "InstantX" else ("double.1",)
    found = sampled(styled(FLUX.model(), style, blocks=dict.fromkeys((*chosen, "single.0"), 0.5)))
    expected = sampled(rewritten(FLUX, [written(style, 0.5, blocks=chosen)]))
    assert relative_error(found, expected) <= SAME


def test_xlabs_form_has_no_weights_for_single_blocks() -> None:
    style = style_of(adapter_of("XLabs"))
    with pytest.raises(ValueError, match="'XLabs' has weights for the double blocks alone, and none of them is chosen"):
        styled(FLUX.model(), style, blocks={"single.0": 1.0, "single.2": 1.0})
    (patch,) = patches_on(styled(FLUX.model(), style))
    assert list(patch.scope.blocks) == ["double.0", "double.1"]


@BOTH_FORMS
def test_each_block_can_be_tried_alone(form: FluxForm) -> None:
    """Which blocks carry style is unknown; a user can find out."""
    style = style_of(adapter_of(form))
    tried = each_block(styled(FLUX.model(), style), WAYS[0], 1)
    assert [caption for caption, _ in tried] == [f"double.{n}" for n in range(2)] + [
        f"single.{n}" for n in range(3) if form == "InstantX"
    ]
    for caption, model in tried:
        assert torch.equal(sampled(model), sampled(styled(FLUX.model(), style, blocks={caption: 1.0})))


@BOTH_FORMS
def test_a_mask_holds_for_the_pictures_tokens_and_its_mean_for_text(form: FluxForm) -> None:
    style = style_of(adapter_of(form))
    mask = torch.zeros(1, 64, 64)
    mask[:, :, :32] = 1.0
    left = (torch.arange(16) % 4 < 2).float()

    def area(tokens: int) -> Tensor:
        return torch.cat([torch.full((tokens - 16,), 0.5), left])[:, None]

    found = sampled(styled(FLUX.model(), style, mask=mask))
    expected = sampled(rewritten(FLUX, [written(style, weight_of_tokens=area)]))
    assert relative_error(found, expected) <= 0.02  # the mask overshoots a little where it is resized
    white = sampled(styled(FLUX.model(), style, mask=torch.ones(1, 8, 8)))
    assert relative_error(white, sampled(styled(FLUX.model(), style))) <= SAME


@BOTH_FORMS
def test_two_pictures_have_masks_of_their_own(form: FluxForm) -> None:
    style = style_of(adapter_of(form), pictures=2)
    left = torch.zeros(2, 64, 64)
    left[0, :, :32], left[1, :, 32:] = 1.0, 1.0
    both = sampled(styled(FLUX.model(), style, mask=left))
    one, other = (
        EncodedStyle(StyleReference((picture,), style.reference.negative, (1.0,)), style.adapter, "")
        for picture in style.reference.pictures
    )
    chained = sampled(styled(styled(FLUX.model(), one, mask=left[:1]), other, mask=left[1:]))
    assert relative_error(both, chained) <= 1e-5


@BOTH_FORMS
@pytest.mark.parametrize(
    "settings",
    [{"strength": 0.0}, {"blocks": {"double.0": 0.0}}, {"window": ScheduleWindow(0.9999, 1.0)}],
    ids=["strength 0", "block weight 0", "window that no step meets"],
)
def test_nothing_asked_for_leaves_flux_bit_identical(form: FluxForm, settings: dict[str, Any]) -> None:
    assert torch.equal(sampled(styled(FLUX.model(), style_of(adapter_of(form)), **settings)), sampled(FLUX.model()))


@BOTH_FORMS
def test_the_given_model_stays_as_it_was(form: FluxForm) -> None:
    model = FLUX.model()
    plain = sampled(model)
    changed = styled(model, style_of(adapter_of(form)))
    first = sampled(changed)
    assert torch.equal(sampled(model), plain) and patches_on(model) == ()
    assert torch.equal(sampled(changed), first)


@BOTH_FORMS
def test_each_image_of_a_batch_comes_out_as_alone(form: FluxForm) -> None:
    style = style_of(adapter_of(form))
    noise = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(5))
    batch = sampled(styled(FLUX.model(), style), images=2, noise=noise, cfg=3.0)
    for image in range(2):
        alone = sampled(styled(FLUX.model(), style), noise=noise[image : image + 1], cfg=3.0)
        assert relative_error(batch[image : image + 1], alone) <= 1e-5


@BOTH_FORMS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_nearly_the_same(form: FluxForm, dtype: torch.dtype) -> None:
    style = style_of(adapter_of(form))
    found = sampled(styled(FLUX.model(dtype=dtype), style))
    assert relative_error(found, sampled(styled(FLUX.model(), style))) < 0.05


def test_both_forms_chain_in_either_order() -> None:
    styles = [style_of(adapter_of(form)) for form in FLUX_FORMS]
    expected = sampled(rewritten(FLUX, [written(style) for style in styles]))
    for order in (styles, styles[::-1]):
        model = FLUX.model()
        for style in order:
            model = styled(model, style)
        assert relative_error(sampled(model), expected) <= SAME


@BOTH_FORMS
def test_chroma_has_the_blocks_of_flux(form: FluxForm) -> None:
    chroma, style = TRANSFORMERS["chroma"], style_of(adapter_of(form))
    found = sampled(styled(chroma.model(), style), chroma)
    assert relative_error(found, sampled(rewritten(chroma, [written(style)]), chroma)) <= SAME


# Beside other packs


@BOTH_FORMS
def test_another_packs_block_attention_and_inputs_stay_around_ours(form: FluxForm) -> None:
    style, seen = style_of(adapter_of(form)), []

    def slot(given: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        made = extra["original_block"](given)
        return {**made, "img": made["img"] * 1.01}

    def inputs(q: Tensor, k: Tensor, v: Tensor, pe: Tensor, attn_mask: Any, extra_options: Any) -> dict[str, Tensor]:
        seen.append(extra_options["block_index"])
        return {"v": v * 0.9}

    def attend(function: Any, *arguments: Any, **named: Any) -> Tensor:
        return function(*arguments, **named) * 1.1

    def others(model: ModelPatcher) -> ModelPatcher:
        model = model.clone()
        model.set_model_patch_replace(slot, "dit", "double_block", 1)
        model.set_model_attn1_patch(inputs)
        model.model_options["transformer_options"]["optimized_attention_override"] = attend
        return model

    before, after = sampled(styled(others(FLUX.model()), style)), sampled(others(styled(FLUX.model(), style)))
    assert torch.equal(before, after) and seen
    assert relative_error(before, sampled(styled(FLUX.model(), style))) > CHANGED
    assert relative_error(before, sampled(others(FLUX.model()))) > CHANGED


def test_a_block_that_another_pack_skips_gets_nothing_of_an_earlier_one() -> None:
    """As Skip Layer Guidance does: the block's attention never comes."""
    style = style_of(adapter_of("XLabs"))

    def skip(given: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        return {"img": given["img"], "txt": given["txt"]}

    def skipping(model: ModelPatcher) -> ModelPatcher:
        model = model.clone()
        model.set_model_patch_replace(skip, "dit", "double_block", 1)
        return model

    found = sampled(skipping(styled(FLUX.model(), style)))
    assert torch.equal(found, sampled(skipping(styled(FLUX.model(), style, blocks={"double.0": 1.0}))))


@BOTH_FORMS
def test_reference_pictures_of_an_editing_model_are_left_alone(form: FluxForm) -> None:
    """Kontext: their tokens stand behind the picture's and get nothing of the adapter."""
    style = style_of(adapter_of(form))
    latent = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(9))
    positive = FLUX.conditioning(reference_latents=[latent])

    def area(tokens: int) -> Tensor:
        kept = torch.ones(tokens, 1)
        kept[-16:] = 0.0
        return kept

    found = sampled(styled(FLUX.model(), style), positive=positive)
    expected = sampled(rewritten(FLUX, [written(style, weight_of_tokens=area)]), positive=positive)
    assert relative_error(found, expected) <= SAME


# Refusals


@pytest.mark.parametrize("variant", ["base", "plus"])
def test_an_adapter_for_a_unet_is_refused_on_flux(variant: str) -> None:
    adapter = manage_adapter("unet adapter", adapter_state_dict("sd15", variant))
    with pytest.raises(
        ValueError, match=r"'unet adapter' is made for .*, but the model is Flux \(20-wide text, 5 layers\)"
    ):
        adapter.numbers_for(map_styled(FLUX.model()))


@BOTH_FORMS
def test_an_adapter_for_flux_is_refused_on_a_unet(form: FluxForm) -> None:
    with pytest.raises(ValueError, match=r"is made for Flux \(20-wide text, \d layers\), but the model is "):
        styled(make_unet("sd15"), style_of(adapter_of(form)), blocks={})


@BOTH_FORMS
def test_an_adapter_of_fewer_blocks_is_refused(form: FluxForm) -> None:
    short = manage_adapter("short", flatten(flux_adapter_state_dict(form, double=1)))
    with pytest.raises(
        ValueError, match=r"'short' is made for Flux .* but the model is Flux \(.*One of the two is not whole"
    ):
        short.numbers_for(map_styled(FLUX.model()))


@pytest.mark.parametrize("name", ["flux2", "qwen_image", "wan"])
def test_other_transformers_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is made for Flux|transformer, for which Semblance knows no IP-Adapter"):
        styled(TRANSFORMERS[name].model(), style_of(adapter_of("InstantX")), blocks={})


def test_blocks_of_style_are_unknown_on_flux() -> None:
    with pytest.raises(ValueError, match="Semblance knows no blocks for style in Flux models.*Set blocks to 'all'"):
        map_styled(FLUX.model()).family.preset("style")


def test_a_model_of_another_width_of_text_is_named_with_the_family_to_load() -> None:
    with pytest.raises(ValueError, match=r"made for Flux .* but the model is Flux.2 \(.*\). Load a model of Flux"):
        adapter_of("InstantX").numbers_for(map_styled(TRANSFORMERS["flux2"].model(context_in_dim=28)))


# Beside a method of ours that shows the model pictures


@BOTH_FORMS
@pytest.mark.parametrize("size", [(8, 8), (6, 10)], ids=["as guest rows", "in a call of its own"])
def test_a_reference_that_rides_along_gets_nothing_of_the_style(form: FluxForm, size: tuple[int, int]) -> None:
    style = style_of(adapter_of(form))
    everything = Scope(map_styled(FLUX.model()).family.preset("all"))
    noise = torch.randn(2, 1, 16, *size, generator=torch.Generator().manual_seed(4))
    shows = ReferenceStyle((ShownPicture("reference", noise[0], noise[1]),), everything)
    before = sampled(styled(add_patch(FLUX.model(), shows), style), cfg=3.0)
    after = sampled(add_patch(styled(FLUX.model(), style), shows), cfg=3.0)
    assert relative_error(before, after) <= 1e-5
    assert relative_error(before, sampled(styled(FLUX.model(), style), cfg=3.0)) > CHANGED
    assert relative_error(before, sampled(add_patch(FLUX.model(), shows), cfg=3.0)) > CHANGED


# What a run leaves


@BOTH_FORMS
@pytest.mark.parametrize("raised", [Fault, InterruptProcessingException])
def test_a_run_leaves_nothing_however_it_ends(form: FluxForm, raised: type[BaseException]) -> None:
    model = styled(FLUX.model(), style_of(adapter_of(form)))
    plain = sampled(model)
    before = tensors_alive()

    def stop(given: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        raise raised

    stopped = model.clone()
    stopped.set_model_patch_replace(stop, "dit", "double_block", 1)
    with pytest.raises(raised):
        sampled(stopped)
    del stopped
    assert torch.equal(sampled(model), plain)
    assert tensors_alive() <= before


@BOTH_FORMS
def test_many_runs_keep_no_more_than_one(form: FluxForm) -> None:
    model = styled(FLUX.model(), style_of(adapter_of(form)))
    sampled(model)
    before = tensors_alive()
    for seed in range(5):
        sampled(model, seed=seed)
    assert tensors_alive() <= before


@BOTH_FORMS
def test_a_later_step_brings_nothing_from_the_cpu(form: FluxForm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Image keys are normalised and brought in the first step alone."""
    brought: list[Any] = []
    method = type(styled_patch := patches_on(styled(FLUX.model(), style_of(adapter_of(form))))[0])
    original = method._keys_for
    monkeypatch.setattr(method, "_keys_for", lambda self, call: (brought.append(call.site), original(self, call))[1])
    sampled(styled(FLUX.model(), style_of(adapter_of(form))), steps=4, cfg=3.0)
    assert len(brought) == len(set(brought)) == len(styled_patch.numbers)
