"""Windows of a batch: the model sees some images at a time, and each comes out as if it had seen all of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from semblance.attention.engine.guests import PinnedImages
from semblance.attention.engine.moment import Moment
from semblance.attention.engine.protocols import KnowsImages
from semblance.attention.engine.scope import Scope
from semblance.attention.methods.styleid.method import StyleID
from semblance.host.binding.model import add_patch
from semblance.tests.support.speeds import slow_but
from semblance.tests.support.studio import PATCHES, STORIES, Studio, painted, relative_error, rows_of_calls, trajectory
from semblance.tests.support.toy_patches import ToyPatch
from semblance.tests.support.windows import windowed

IMAGES = 4
MIXES_IMAGES = ("shares keys",)
ADDS_CALLS_UP = ("remembers",)  # an image in two windows is there twice
SEPARATE = [name for name in PATCHES if name not in {*STORIES, *MIXES_IMAGES, *ADDS_CALLS_UP}]
QUICK = ("edits output", "brings guests", "styleid masked")


def styleid_of_each(studio: Studio, contents: int, styles: int, masks: int = 0) -> StyleID:
    """A content and a style of its own for every image, or one for all; a mask likewise."""
    made = [
        replace(
            one := trajectory(studio, (8, 8), seed),
            latents=torch.cat([one.latents.roll(image, dims=-1) for image in range(count)], dim=1),
            context=torch.cat([one.context.roll(image, dims=1) for image in range(count)]),
            vector=one.vector if one.vector is None else one.vector.expand(count, -1),
        )
        for seed, count in ((1, contents), (2, styles))
    ]
    return StyleID(made[0], made[1], studio.everywhere(mask=painted(masks, 40, 56) if masks else None))


@pytest.mark.parametrize("anchor", [False, True], ids=["", "with an anchor"])
@pytest.mark.parametrize("name", slow_but(SEPARATE, lambda name: name in QUICK))
def test_images_seen_in_windows_come_out_as_those_seen_at_once(sd15: Studio, name: str, anchor: bool) -> None:
    at_once = sd15.patched(name, images=IMAGES)
    assert relative_error(sd15.sample(windowed(sd15.with_patch(name), anchor=anchor), images=IMAGES), at_once) < 1e-5


@pytest.mark.parametrize("anchor", [False, True], ids=["", "with an anchor"])
def test_every_image_has_its_own_mask_in_any_window(sd15: Studio, anchor: bool) -> None:
    model = add_patch(sd15.model, sd15.instantstyle(scope=sd15.everywhere(mask=painted(IMAGES, 40, 56))))
    seen = sd15.sample(windowed(model, anchor=anchor), images=IMAGES)
    assert relative_error(seen, sd15.sample(model, images=IMAGES)) < 1e-5


@pytest.mark.parametrize("anchor", [False, True], ids=["", "with an anchor"])
@pytest.mark.parametrize(("contents", "styles", "masks"), [(IMAGES, 1, 0), (IMAGES, IMAGES, IMAGES), (1, IMAGES, 1)])
def test_every_image_keeps_its_own_pictures_in_any_window(
    studio: Studio, contents: int, styles: int, masks: int, anchor: bool
) -> None:
    model = add_patch(studio.model, styleid_of_each(studio, contents, styles, masks))
    seen = studio.sample(windowed(model, anchor=anchor), images=IMAGES)
    assert relative_error(seen, studio.sample(model, images=IMAGES)) < 1e-5


def test_windows_in_another_order_and_with_an_image_kept_in_all_are_read_right(sd15: Studio) -> None:
    model = add_patch(sd15.model, styleid_of_each(sd15, IMAGES, 1, IMAGES))
    looped = windowed(model, context_schedule="looped_uniform", closed_loop=True, context_stride=2)
    at_once = sd15.sample(model, images=IMAGES)
    assert relative_error(sd15.sample(looped, images=IMAGES), at_once) < 1e-5
    # The image kept at the first place of each window takes the place of another there, so the last ones alone agree.
    kept = windowed(model, length=3, latent_retain_index_list="0", context_overlap=2, fuse_method="flat")
    assert relative_error(sd15.sample(kept, images=IMAGES)[3:], at_once[3:]) < 1e-5


def test_pictures_of_images_outside_a_window_do_not_ride(sd15: Studio) -> None:
    model = add_patch(sd15.model, styleid_of_each(sd15, IMAGES, 1))
    seen, rows = rows_of_calls(windowed(model, context_overlap=0))
    sd15.sample(seen, images=IMAGES, steps=1)
    assert rows == [2 * 2 + 2 + 1] * 2


class Pin(ToyPatch, KnowsImages):
    """Knows the first two images."""

    def pins(self, moment: Moment) -> PinnedImages:
        known = torch.ones(2, 4, 8, 8) * torch.tensor([0.5, -0.5]).reshape(2, 1, 1, 1)
        return PinnedImages(known * moment.sigma, known)


def test_pinned_images_are_found_in_any_window(sd15: Studio) -> None:
    model = add_patch(sd15.model, Pin(Scope({})))
    at_once, seen = sd15.sample(model, images=IMAGES), sd15.sample(windowed(model), images=IMAGES)
    assert relative_error(seen, at_once) < 1e-5
    assert relative_error(at_once[:2], sd15.without_patch(images=IMAGES)[:2]) > 0.1
    assert relative_error(at_once[2:], sd15.without_patch(images=IMAGES)[2:]) < 1e-5


@pytest.mark.parametrize("name", sorted(STORIES))
def test_a_story_in_windows_is_refused_before_the_model_is_called(sd15: Studio, name: str) -> None:
    for model in (windowed(sd15.with_patch(name), length=1), sd15.with_patch(name, windowed(sd15.model, length=1))):
        seen, rows = rows_of_calls(model)
        with pytest.raises(ValueError, match=r"^Context windows show the model 1 of 2 images at once.* Bypass"):
            sd15.sample(seen)
        assert not rows
    whole = windowed(sd15.with_patch(name), length=2)
    assert torch.equal(sd15.sample(whole), sd15.patched(name))


def test_windows_that_cut_the_picture_up_are_refused_where_its_parts_must_be_known(sd15: Studio) -> None:
    cut = {"length": 4, "dim": 3}
    with pytest.raises(ValueError, match="shown parts of the picture.*sets context_handler: comfy.context_windows"):
        sd15.sample(windowed(sd15.with_patch("instantstyle masked"), **cut), images=1)
    with pytest.raises(ValueError, match="is shown a part of the picture, 4x8 .*context_windows.*Bypass"):
        sd15.sample(windowed(sd15.with_patch("styleid"), **cut), images=1)


def test_windows_of_another_pack_that_nothing_tells_of_are_refused(sd15: Studio) -> None:
    """AnimateDiff-Evolved calls the model with the rows of its contexts, inside what ComfyUI takes for the batch."""

    def contexts(executor: Any, model: Any, conds: Any, x_in: Tensor, timestep: Tensor, options: Any) -> Any:
        import comfy.samplers

        parts = [comfy.samplers._calc_cond_batch(model, conds, x_in[rows], timestep[rows], options) for rows in HALVES]
        return [torch.cat(sides) for sides in zip(*parts, strict=True)]

    for first in (True, False):
        model = sd15.model if first else sd15.with_patch("instantstyle")
        model = model.clone()
        model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "ADE", contexts)
        model = sd15.with_patch("instantstyle", model) if first else model
        with pytest.raises(ValueError, match=r"called with 2 rows for 2 conditionings of 2.*AnimateDiff-Evolved"):
            sd15.sample(model)


HALVES = (slice(0, 1), slice(1, 2))
