"""Reference Style on models that edit, whose own pictures stand in the sequence too, that fill, and that make video."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from comfy.model_patcher import ModelPatcher

from semblance.attention.engine.guests import ShownPicture
from semblance.attention.engine.scope import ImageMask
from semblance.attention.methods.reference_style import Frequencies, ReferenceStyle, Statistics
from semblance.host.binding.model import add_patch
from semblance.host.binding.transformer import transformer_of
from semblance.tests.support.reference_page import Page, by_the_page
from semblance.tests.support.reference_styles import picture, recorded, sampled, styled
from semblance.tests.support.speeds import slow
from semblance.tests.support.studio import Studio, relative_error
from semblance.tests.support.transformers import TRANSFORMERS, TransformerFamily
from semblance.tests.tiny_models.unets import UNET_CONFIGS, base_model, patcher_around
from semblance.tests.tiny_models.weights import seed_weights

CONSTANT = Frequencies(structure=(0.4, 0.4), detail=(1.3, 1.3))
STATISTICS = Statistics(0.5, 0.5)
EDITING = ["flux", "qwen_image", slow("flux2"), slow("krea2")]
"""Kontext, Qwen-Edit, Flux.2 and Krea 2 put reference pictures behind the picture."""


@cache
def tiny(family: TransformerFamily) -> ModelPatcher:
    return family.model()


def edited(family: TransformerFamily) -> dict[str, Any]:
    """Both sides of CFG with two pictures to edit, of other sizes than the one that is made."""
    shown = [family.latent(1, *size, seed=seed)["samples"] for size, seed in (((6, 10), 11), ((4, 4), 12))]
    method = {"reference_latents_method": "index"} if family.name == "krea2" else {}
    return {
        side: family.conditioning(seed=seed, reference_latents=shown, **method)
        for side, seed in (("positive", 1), ("negative", 2))
    }


@pytest.mark.parametrize("family", EDITING, indirect=True)
def test_pictures_to_edit_are_no_part_of_the_picture_that_is_made(family: TransformerFamily) -> None:
    model, calls = recorded(tiny(family))
    one, texts = picture(family), edited(family)
    sampled(family, styled(model, one, frequencies=CONSTANT, statistics=STATISTICS), steps=1, **texts)
    expected = by_the_page(family, tiny(family), calls[0], [one], Page(0.4, 1.3, 2.5, 0.5, 0.5))
    assert len(calls[0].numbers) == 2 and relative_error(calls[0].output, expected) < 1e-5
    assert (
        relative_error(sampled(family, tiny(family), steps=1, **texts), sampled(family, tiny(family), steps=1)) > 1e-3
    )


@pytest.mark.parametrize("family", EDITING, indirect=True)
def test_a_reference_of_another_size_is_looked_at_without_the_pictures_to_edit(family: TransformerFamily) -> None:
    texts, method = edited(family), styled(tiny(family), picture(family, size=(12, 6)), statistics=STATISTICS)
    made = sampled(family, method, steps=1, **texts)
    assert torch.isfinite(made).all()
    assert relative_error(made, sampled(family, tiny(family), steps=1, **texts)) > 1e-3


def test_pictures_before_the_picture_are_left_out_too() -> None:
    """Z-Image Omni's stand before it, each filled up to 32 tokens like the picture, as their texts are."""
    family = TRANSFORMERS["z_image"]
    model, calls = recorded(tiny(family))
    shown = [family.latent(1, 6, 10, seed=11)["samples"]]
    texts = {
        side: family.conditioning(seed=seed, reference_latents=shown)
        for side, seed in (("positive", 1), ("negative", 2))
    }
    one = picture(family)
    sampled(family, styled(model, one, frequencies=CONSTANT, statistics=STATISTICS), steps=1, **texts)
    page = Page(0.4, 1.3, 2.5, 0.5, 0.5)
    expected = by_the_page(family, tiny(family), calls[0], [one], page, before=32 + 32)
    assert relative_error(calls[0].output, expected) < 1e-5


def test_the_slice_of_the_picture_is_counted_from_the_end() -> None:
    flux, z_image, wan = (transformer_of(tiny(TRANSFORMERS[name]).model) for name in ("flux", "z_image", "wan"))
    assert flux and z_image and wan
    references = {"reference_image_num_tokens": [15, 4]}
    assert flux.image(flux.sites[0], 7 + 16 + 19, 16, references) == slice(7, 23)
    assert flux.image(flux.sites[-1], 7 + 16, 16, {}) == slice(7, 23)
    assert z_image.image(z_image.sites[0], 32 + 32, 20, {}) == slice(32, 52)
    assert wan.image(wan.sites[0], 48, 48, {}) == slice(0, 48)


@pytest.mark.parametrize("family", ["wan", slow("anima"), slow("qwen_image")], indirect=True)
def test_frames_of_a_video_look_at_a_reference_of_one_picture(family: TransformerFamily) -> None:
    """It cannot ride beside them: it goes apart, and masks hold for every frame."""
    latent = {"samples": torch.zeros(1, 16, 3, 8, 8)}
    method = {"statistics": STATISTICS, "frequencies": CONSTANT}
    plain = sampled(family, tiny(family), latent=latent)
    moved = sampled(family, styled(tiny(family), picture(family), **method), latent=latent)
    assert moved.shape == plain.shape and torch.isfinite(moved).all()
    assert all(relative_error(moved[:, :, frame], plain[:, :, frame]) > 1e-3 for frame in range(3))
    white = ImageMask(torch.ones(1, 64, 64))
    everywhere = sampled(family, styled(tiny(family), picture(family), mask=white, **method), latent=latent)
    assert relative_error(everywhere, moved) < 1e-5
    top = ImageMask(torch.cat([torch.ones(1, 32, 64), torch.zeros(1, 32, 64)], dim=1))
    half = sampled(family, styled(tiny(family), picture(family), mask=top, **method), latent=latent)
    for frame in range(3):
        upper, lower = ((half - moved)[:, :, frame, rows].norm() for rows in (slice(0, 4), slice(4, 8)))
        assert upper < lower


@pytest.mark.parametrize("prompted", [False, True])
@pytest.mark.parametrize("size", [(8, 8), (12, 6)])
def test_where_a_model_fills_a_picture_the_reference_has_nothing_to_fill(size: tuple[int, int], prompted: bool) -> None:
    """Flux Fill is given the picture and its mask beside the latents, of the sampler's size."""
    family = TRANSFORMERS["flux"]
    model = filling()
    texts = {
        side: family.conditioning(seed=seed, concat_latent_image=family.latent(seed=31)["samples"])
        for side, seed in (("positive", 1), ("negative", 2))
    }
    prompt = family.conditioning(seed=4) if prompted else None
    made = sampled(family, styled(model, picture(family, size=size, prompt=prompt)), **texts)
    plain = sampled(family, model, **texts)
    assert torch.isfinite(made).all() and relative_error(made, plain) > 1e-3


@cache
def filling() -> ModelPatcher:
    return TRANSFORMERS["flux"].model(in_channels=96)


@pytest.mark.parametrize("prompted", [False, True])
@pytest.mark.parametrize("size", [(8, 8), (12, 6)])
def test_an_inpainting_unet_is_served_too(sd15: Studio, size: tuple[int, int], prompted: bool) -> None:
    model = patcher_around(base_model("sd15", {**UNET_CONFIGS["sd15"], "in_channels": 9}))
    model.model.set_inpaint()
    seed_weights(model.model.diffusion_model, 21)
    prompt = sd15.text(5) if prompted else None
    generator = torch.Generator().manual_seed(5)
    clean, noise = (torch.randn(1, 4, *size, generator=generator) for _ in range(2))
    one = ShownPicture("a", clean, noise, prompt)
    plain = sd15.sample(model)
    made = sd15.sample(add_patch(model, ReferenceStyle((one,), sd15.everywhere(), statistics=STATISTICS)))
    assert torch.isfinite(made).all() and relative_error(made, plain) > 1e-3
