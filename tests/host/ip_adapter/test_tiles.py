"""Tiles equal those of ComfyUI_IPAdapter_plus; each acts in its own box, once, and within the user's mask."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from semblance.host.ip_adapter.applying import Listening
from semblance.host.ip_adapter.sources import PictureReader
from semblance.host.ip_adapter.tiles import apply_tiles, cut_into_tiles
from semblance.tests.support.frozen_cases import furthest
from semblance.tests.support.graphs import picture
from semblance.tests.support.old_nodes import FACTS, TENSORS, frozen_adapter, masks_of, pictures_of
from semblance.tests.support.oracles import oracle_clip_vision, oracle_unet

TILED = FACTS["units"]["tiled"]
LEVEL = 1 / 255


@pytest.mark.parametrize("name", TILED)
def test_tiles_and_boxes_equal_those_of_ipadapter_plus(name: str) -> None:
    facts, tiles = TILED[name], cut_into_tiles(pictures_of(name), 0.0)
    found = torch.cat(tiles.pictures)
    assert list(found.shape) == facts["tiles"]
    averaged = functional.avg_pool2d(found.movedim(-1, 1), 16).movedim(1, -1)
    assert furthest(averaged, TENSORS[f"unit.tiled.{name}.tiles"]) <= LEVEL
    for mask, (top, left, bottom, right) in zip(tiles.masks, facts["boxes_top_left_bottom_right"], strict=True):
        expected = torch.zeros(1, *facts["canvas_hw"])
        expected[:, top:bottom, left:right] = 1
        assert torch.equal(mask, expected)


@pytest.mark.parametrize(
    ("height", "width", "tiles", "canvas"),
    [(100, 500, 4, (256, 1024)), (640, 100, 4, (1024, 256)), (90, 200, 3, (256, 568)), (100, 101, 4, (512, 512))],
)
def test_pictures_of_any_proportion_become_tiles(height: int, width: int, tiles: int, canvas: tuple[int, int]) -> None:
    cut = cut_into_tiles(picture(1, height, width, images=2), 0.3)
    assert [tuple(tile.shape) for tile in cut.pictures] == [(2, 256, 256, 3)] * tiles
    assert [tuple(mask.shape) for mask in cut.masks] == [(1, *canvas)] * tiles
    assert torch.stack(cut.masks).amax(dim=0).min() == 1, "every pixel lies in a tile"


def test_a_tile_acts_within_the_mask_alone() -> None:
    area = masks_of([1, 2])
    cut = cut_into_tiles(pictures_of("wide"), 0.0, area)
    whole = torch.stack(cut.masks).amax(dim=0)
    resized = functional.interpolate(area.unsqueeze(1), whole.shape[1:], mode="area").squeeze(1)
    assert [len(mask) for mask in cut.masks] == [2, 2, 2]
    assert (whole - resized).abs().mean() < 0.02


@pytest.mark.parametrize("negative", [None, [3]])
def test_all_tiles_and_what_they_are_set_against_are_encoded_once(negative: list[int] | None) -> None:
    encoder, seen = oracle_clip_vision(), []
    hook = encoder.model.register_forward_pre_hook(
        lambda _module, _arguments, named: seen.append(len(named["pixel_values"])), with_kwargs=True
    )
    reader = PictureReader(frozen_adapter("sd15", "plus"), encoder)
    against = None if negative is None else pictures_of(negative)
    apply_tiles(oracle_unet("sd15"), reader, cut_into_tiles(pictures_of("wide"), 0.0), Listening(), against)
    hook.remove()
    assert seen == [3, 1]


@pytest.mark.parametrize(
    ("mask", "sentence"),
    [
        (torch.zeros(1, 8, 8), "The mask is empty"),
        (torch.full((1, 8, 8), torch.nan), "The mask holds values that are not numbers"),
        (torch.ones(8, 8), "The mask has shape"),
    ],
)
def test_a_mask_that_cannot_be_used_is_refused(mask: torch.Tensor, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        cut_into_tiles(pictures_of("wide"), 0.0, mask)


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (torch.full((1, 64, 64, 3), torch.nan), "The image holds pixels that are not numbers"),
        (torch.ones(1, 8, 64, 3), "The image is 64x8 pixels, too small"),
        (torch.ones(1, 64, 64, 4), "The image has 4 channels"),
    ],
)
def test_a_picture_that_cannot_be_used_is_refused(broken: torch.Tensor, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        cut_into_tiles(broken, 0.0)
