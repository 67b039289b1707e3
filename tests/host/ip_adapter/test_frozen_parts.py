"""The parts of Apply IP-Adapter and Prepare Picture equal those of ComfyUI_IPAdapter_plus, one by one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from semblance.attention.functional.picture_sums import PICTURE_SUMS, PictureSum, summed_pictures
from semblance.host.ip_adapter.encoding import (
    encode_nothing,
    encode_pictures,
    join_embeddings,
    join_patches,
    normalised,
)
from semblance.host.ip_adapter.prepared_pictures import prepared
from semblance.tests.support.frozen_cases import furthest
from semblance.tests.support.oracles import oracle_clip_vision

from .frozen_applications import TENSORS, images

EVERY_14TH = slice(3, None, 14)
ONE_LEVEL = 1 / 255 + 1e-6
PREPARED = sorted(name for name in TENSORS if name.startswith("unit.prep."))


@pytest.mark.parametrize("name", PREPARED)
def test_a_prepared_picture_is_within_one_level(name: str) -> None:
    picture, _, setting = name.removeprefix("unit.prep.").partition(".")
    amount = float(setting.removeprefix("sharp_")) if setting.startswith("sharp_") else 0.0
    place = setting if setting.islower() and not amount else "center"
    interpolation = setting if setting.isupper() else "LANCZOS"
    (found,) = prepared(images(picture), interpolation, place, amount)  # pyright: ignore[reportArgumentType]
    expected = TENSORS[name] if amount else TENSORS[name].float() / 255
    assert found.shape == (224, 224, 3)
    assert furthest(found[EVERY_14TH, EVERY_14TH], expected) <= ONE_LEVEL


@torch.no_grad()
def test_pictures_are_encoded_alike() -> None:
    encoder, shown = oracle_clip_vision(), images([0, 1, 2, 3, 4])
    assert furthest(torch.cat(encode_pictures(encoder, shown, True)), TENSORS["unit.clip.embeds"]) <= 1e-5
    assert furthest(torch.cat(encode_pictures(encoder, shown, False)), TENSORS["unit.clip.hidden"]) <= 1e-5
    assert furthest(torch.cat(encode_nothing(encoder, False)), TENSORS["unit.clip.black_hidden"]) <= 1e-5
    assert furthest(normalised(encoder, shown[:1])[0], TENSORS["unit.clip.pixels_0"].squeeze(0)) <= 1e-5


@pytest.mark.parametrize("how", PICTURE_SUMS)
def test_pictures_are_summed_alike(how: PictureSum) -> None:
    pictures = TENSORS["unit.clip.embeds"][:3].split(1)
    expected = TENSORS[f"unit.combine.{how.replace(' ', '_')}"]
    assert furthest(torch.cat(summed_pictures(pictures, how)), expected) <= 1e-5


def test_a_channel_that_no_picture_has_stays_without() -> None:
    (found,) = summed_pictures([torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 3.0]])], "norm average")
    assert torch.isfinite(found).all() and found[0, 0] == 0


def test_tiles_are_joined_alike() -> None:
    assert furthest(join_patches(TENSORS["unit.merge_hidden.in"], 3), TENSORS["unit.merge_hidden.out"]) == 0
    tiles = TENSORS["unit.merge_embeddings.in"].split(4)
    joined = torch.cat([join_embeddings(picture, 2) for picture in tiles])
    assert furthest(joined, TENSORS["unit.merge_embeddings.out"]) <= 1e-6


def test_embeddings_that_are_no_square_are_averaged_where_ipadapter_plus_stops() -> None:
    tiles: Tensor = torch.randn(4, 24, generator=torch.Generator().manual_seed(0))
    assert torch.equal(join_embeddings(tiles, 2), tiles.mean(dim=0, keepdim=True))
