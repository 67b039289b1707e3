"""InstantStyle on Flux, from files to a picture, node by node; and the nodes that do not know Flux."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.utils  # noqa: F401  (puts ComfyUI on the path)
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from semblance.host.binding.model import patches_on
from semblance.host.instantstyle.adapter import LoadedAdapter
from semblance.host.instantstyle.encoding import EncodedStyle
from semblance.nodes.apply_adapter import ApplyAdapter
from semblance.nodes.inspect import ShowPatches
from semblance.nodes.load import LoadAdapter
from semblance.nodes.picture_parts import EncodePicture
from semblance.nodes.reference import SubtractContent
from semblance.tests.support.flux_blocks import WrittenAdapter, rewritten
from semblance.tests.support.graphs import encode, picture, relative_error, run, styled
from semblance.tests.support.transformers import TRANSFORMERS, sample
from semblance.tests.tiny_models import (
    FLUX_FORMS,
    adapter_state_dict,
    flux_adapter_state_dict,
    make_clip,
    make_clip_vision,
    make_siglip,
    make_unet,
    write_siglip,
)
from semblance.tests.tiny_models.flux_adapters import FluxForm

FLUX = TRANSFORMERS["flux"]
BOTH_FORMS = pytest.mark.parametrize("form", FLUX_FORMS)


def load(models: Path, form: FluxForm) -> LoadedAdapter:
    save_file(flux_adapter_state_dict(form), models / "ipadapter" / f"{form}.safetensors")
    return run(LoadAdapter, f"{form}.safetensors")[0]


def encoder_for(models: Path, form: FluxForm) -> Any:
    if form == "XLabs":
        return make_clip_vision("l")
    write_siglip(models / "clip_vision" / "siglip.safetensors")
    return make_siglip()


def sampled(model: Any) -> Tensor:
    return sample(model, FLUX.conditioning(), FLUX.conditioning(seed=2), FLUX.latent())


@BOTH_FORMS
def test_a_picture_on_flux_from_files_to_sampler(models: Path, form: FluxForm) -> None:
    style = encode(load(models, form), encoder_for(models, form), picture(1), picture(2))
    model = FLUX.model()
    patched = styled(model, style, strength=0.8)
    assert relative_error(sampled(patched), sampled(model)) > 1e-3
    assert patches_on(model) == ()
    assert f"InstantStyle ({form}.safetensors), strength 0.8" in run(ShowPatches, patched)[0]


@torch.no_grad()
def on_the_page(style: EncodedStyle, form: FluxForm) -> WrittenAdapter:
    """Blocks written out with what the encoder saw: all squares in one softmax, the unconditional row first."""
    project = style.adapter.patcher.model.tokens
    seen = project(style.reference.pictures[0]).flatten(0, 1)
    unseen = project(style.reference.negative)[0].repeat(len(style.reference.pictures[0]), 1)
    return WrittenAdapter(flux_adapter_state_dict(form), torch.stack([unseen, seen]), 1.0)


@BOTH_FORMS
@pytest.mark.parametrize(("fit", "squares"), [("crop", 1), ("pad", 1), ("tile", 3), ("stretch", 1)])
def test_every_fit_of_a_wide_picture_on_flux(models: Path, form: FluxForm, fit: str, squares: int) -> None:
    style = encode(load(models, form), encoder_for(models, form), picture(1, 56, 150), fit=fit)
    assert len(style.reference.pictures[0]) == squares
    page = sampled(rewritten(FLUX, [on_the_page(style, form)]))
    assert relative_error(sampled(styled(FLUX.model(), style)), page) <= 1e-6


@BOTH_FORMS
@pytest.mark.parametrize("fit", ["crop", "tile"])
def test_a_negative_picture_is_what_the_negative_side_sees(models: Path, form: FluxForm, fit: str) -> None:
    adapter, encoder = load(models, form), encoder_for(models, form)
    style = encode(adapter, encoder, picture(1, 56, 150), fit=fit, negative=picture(9))
    other = encode(adapter, encoder, picture(9)).reference.pictures[0]
    torch.testing.assert_close(style.reference.negative, other)
    found = sampled(styled(FLUX.model(), style))
    assert relative_error(found, sampled(rewritten(FLUX, [on_the_page(style, form)]))) <= 1e-6
    without = encode(adapter, encoder, picture(1, 56, 150), fit=fit)
    assert relative_error(found, sampled(styled(FLUX.model(), without))) > 1e-3


@BOTH_FORMS
def test_weights_of_several_pictures_on_flux(models: Path, form: FluxForm) -> None:
    """A picture of twice the weight counts as if it had been connected twice."""
    adapter, encoder = load(models, form), encoder_for(models, form)
    weighted = encode(adapter, encoder, picture(1), picture(2), weights="2, 1")
    twice = encode(adapter, encoder, picture(1), picture(1), picture(2))
    found = sampled(styled(FLUX.model(), weighted))
    assert relative_error(found, sampled(styled(FLUX.model(), twice))) <= 1e-5
    assert relative_error(found, sampled(styled(FLUX.model(), encode(adapter, encoder, picture(1), picture(2))))) > 1e-3


@BOTH_FORMS
def test_blocks_by_name_and_window_and_curve(models: Path, form: FluxForm) -> None:
    style = encode(load(models, form), encoder_for(models, form), picture(1))
    blocks = {"blocks": "custom", "weights": "double.0=0.5, double.1"}
    settings = {"blocks": blocks, "start": 0.0, "end": 0.9, "curve": {"curve": "fade out"}, "mask": torch.ones(1, 8, 8)}
    (patch,) = patches_on(styled(FLUX.model(), style, **settings))
    assert (dict(patch.scope.blocks), patch.scope.window.end) == ({"double.0": 0.5, "double.1": 1.0}, 0.9)


@pytest.mark.parametrize("preset", ["style", "layout", "style + layout"])
def test_blocks_of_style_are_refused_where_nobody_knows_them(models: Path, preset: str) -> None:
    style = encode(load(models, "XLabs"), make_clip_vision("l"), picture(1))
    with pytest.raises(ValueError, match="knows no blocks for (style|layout) in Flux models.*Set blocks to 'all'"):
        styled(FLUX.model(), style, blocks={"blocks": preset})


def test_a_wrong_adapter_is_told_of_before_a_wrong_block(models: Path) -> None:
    save_file(adapter_state_dict("sd15"), models / "ipadapter" / "unet.safetensors")
    style = encode(run(LoadAdapter, "unet.safetensors")[0], make_clip_vision("h"), picture(1))
    with pytest.raises(
        ValueError, match="'unet.safetensors' is made for .* but the model is Flux .*e.g. ip-adapter.bin"
    ):
        styled(FLUX.model(), style, blocks={"blocks": "style"})


@BOTH_FORMS
def test_a_reference_for_flux_is_refused_on_a_unet(models: Path, form: FluxForm) -> None:
    style = encode(load(models, form), encoder_for(models, form), picture(1))
    with pytest.raises(ValueError, match="is made for Flux .* but the model is "):
        styled(make_unet("sd15"), style)


@BOTH_FORMS
def test_the_nodes_of_ipadapter_plus_refuse_adapters_for_flux(models: Path, form: FluxForm) -> None:
    adapter, encoder = load(models, form), encoder_for(models, form)
    with pytest.raises(ValueError, match="is made for Flux, which the nodes of this group do not know"):
        run(EncodePicture, adapter, picture(1), 1.0, clip_vision=encoder)
    numbers = ("linear", "concat", 0.0, 1.0, "V only")
    with pytest.raises(ValueError, match="is made for Flux"):
        run(ApplyAdapter, make_unet("sd15"), adapter, picture(1), 1.0, *numbers, clip_vision=encoder)
    with pytest.raises(ValueError, match="This model is a Flux transformer"):
        run(ApplyAdapter, FLUX.model(), adapter, picture(1), 1.0, *numbers, clip_vision=encoder)


def test_words_can_be_subtracted_from_what_xlabs_encoder_saw(models: Path) -> None:
    style = encode(load(models, "XLabs"), make_clip_vision("l"), picture(1))
    (without,) = run(SubtractContent, style, make_clip("sd15"), "a rabbit", 0.5)[:1]
    plain, less = (sampled(styled(FLUX.model(), one)) for one in (style, without))
    assert relative_error(less, plain) > 1e-3


def test_words_cannot_be_subtracted_from_what_siglip_saw(models: Path) -> None:
    style = encode(load(models, "InstantX"), encoder_for(models, "InstantX"), picture(1))
    with pytest.raises(ValueError, match="their words and pictures cannot be compared"):
        run(SubtractContent, style, make_clip("sd15"), "a rabbit", 0.5)
