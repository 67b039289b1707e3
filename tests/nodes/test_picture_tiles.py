"""Apply IP-Adapter in Tiles: one patch for each square, on a copy of the model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from semblance.host.binding.model import patches_on
from semblance.host.instantstyle.adapter import LoadedAdapter
from semblance.nodes.picture_tiles import ApplyAdapterTiles
from semblance.tests.support.graphs import load_adapter, picture, relative_error, run, sampled
from semblance.tests.tiny_models import make_clip_vision, make_unet

SETTINGS: dict[str, Any] = {
    "weight": 0.8,
    "weight_type": "linear",
    "combine_embeds": "concat",
    "start_at": 0.0,
    "end_at": 1.0,
    "sharpening": 0.0,
    "embeds_scaling": "V only",
}


@pytest.fixture
def adapter(models: Path) -> LoadedAdapter:
    return replace(load_adapter(models), encoder=make_clip_vision("h"))


def tiled(adapter: LoadedAdapter, model: Any, image: torch.Tensor, **settings: Any) -> Any:
    """The outputs of the node."""
    return run(ApplyAdapterTiles, model, adapter, image, **(SETTINGS | settings))


def test_each_square_is_a_patch_and_is_shown_with_its_mask(adapter: LoadedAdapter) -> None:
    model = make_unet("sd15")
    patched, tiles, masks = tiled(adapter, model, picture(1, 64, 160))
    assert len(patches_on(patched)) == len(tiles) == len(masks) == 3
    assert tiles.shape[1:] == (256, 256, 3) and masks.shape[1:] == (256, 640)
    assert patches_on(model) == ()
    assert not torch.equal(sampled(patched), sampled(model))


def test_a_weight_of_zero_leaves_the_model_untouched(adapter: LoadedAdapter) -> None:
    model = make_unet("sd15")
    assert torch.equal(sampled(tiled(adapter, model, picture(1), weight=0.0)[0]), sampled(model))


def test_each_image_of_the_batch_gets_its_picture_and_weight(adapter: LoadedAdapter) -> None:
    model, both = make_unet("sd15"), picture(1, images=2)
    together = sampled(tiled(adapter, model, both, weight=[0.5, 1.2], per_image=True)[0], images=2)
    for image, weight in enumerate((0.5, 1.2)):
        alone = sampled(tiled(adapter, model, both[image : image + 1], weight=weight)[0], images=2)
        assert (
            relative_error(together[image], alone[image])
            < 1e-4
            < 1e-2
            < relative_error(together[1 - image], alone[1 - image])
        )


def test_of_a_list_of_weights_the_first_counts_for_all_images(adapter: LoadedAdapter) -> None:
    model, shown = make_unet("sd15"), picture(1)
    listed, single = (tiled(adapter, model, shown, weight=weight)[0] for weight in ([0.5, 1.2], 0.5))
    assert torch.equal(sampled(listed), sampled(single))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"image": torch.full((1, 56, 56, 3), torch.nan)}, "The image holds pixels that are not numbers"),
        ({"image_negative": torch.ones(1, 8, 8, 3)}, "The negative image is 8x8 pixels, too small"),
        ({"attn_mask": torch.zeros(1, 8, 8)}, "The mask is empty"),
        ({"weight": float("inf")}, "A weight is inf"),
        ({"sharpening": float("nan")}, "The sharpening is nan"),
        ({"clip_vision": make_clip_vision("g")}, "This adapter needs .* but the image encoder connected is"),
    ],
)
def test_what_cannot_be_tiled_is_refused(adapter: LoadedAdapter, change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        tiled(adapter, make_unet("sd15"), **({"image": picture(1)} | change))


def test_an_adapter_without_an_encoder_needs_one_connected(models: Path) -> None:
    bare = load_adapter(models)
    with pytest.raises(ValueError, match="The adapter came without an image encoder. Connect Load CLIP Vision"):
        tiled(bare, make_unet("sd15"), picture(1))
    assert len(patches_on(tiled(bare, make_unet("sd15"), picture(1), clip_vision=make_clip_vision("h"))[0])) == 4


def test_an_adapter_for_another_family_is_refused_before_the_encoder_runs(models: Path) -> None:
    with pytest.raises(ValueError, match="is made for .* but the model is"):
        tiled(load_adapter(models, "sdxl"), make_unet("sd15"), picture(1))
