"""Pictures as weighted and masked references, and arithmetic of references."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from semblance.host.instantstyle.adapter import LoadedAdapter
from semblance.host.instantstyle.encoding import EncodedStyle
from semblance.host.instantstyle.style_files import load_style, save_style
from semblance.host.thumbnails import THUMBNAIL, picture_of
from semblance.nodes.picture_parts import CombineReferences, EncodePicture, NoisePicture
from semblance.tests.support.frozen_cases import furthest, load_reference
from semblance.tests.support.graphs import encode, load_adapter, picture, run, sampled, styled
from semblance.tests.support.oracles import oracle_clip_vision
from semblance.tests.tiny_models import make_clip_vision, make_unet
from semblance.version import VERSION

TENSORS, _ = load_reference("ipadapter_plus")
METHODS = ("concat", "add", "subtract", "average", "norm average", "max", "min")


@torch.no_grad()
def encoded(adapter: LoadedAdapter, *images: Tensor, encoder: Any = None, **settings: Any) -> list[EncodedStyle]:
    encoder = encoder or make_clip_vision("h")
    settings = {"weight": 1.0} | settings
    return [run(EncodePicture, adapter, image, clip_vision=encoder, **settings)[0] for image in images]


@pytest.fixture
def adapter(models: Path) -> LoadedAdapter:
    return load_adapter(models)


# Encode Picture


@pytest.mark.parametrize("variant", ["base", "plus"])
@torch.no_grad()
def test_an_encoded_picture_is_what_ipadapter_plus_encodes(models: Path, variant: str) -> None:
    adapter = replace(load_adapter(models, variant=variant), encoder=oracle_clip_vision())
    adapter = replace(adapter, layout=replace(adapter.layout, clip_width=24 if variant == "base" else 32))
    reference, nothing = run(EncodePicture, adapter, TENSORS["in.images_u8"].float() / 255, 1.5)
    expected = TENSORS["unit.clip.embeds" if variant == "base" else "unit.clip.hidden"]
    assert furthest(torch.cat(reference.reference.pictures), 1.5 * expected) <= 1e-5
    empty = torch.zeros(1, 24) if variant == "base" else TENSORS["unit.clip.black_hidden"]
    for side in (reference.reference.negative, nothing.reference.negative, *nothing.reference.pictures):
        assert furthest(side, empty) <= 1e-5


def test_a_picture_carries_its_thumbnail_and_nothing_has_none(adapter: LoadedAdapter) -> None:
    reference, nothing = run(EncodePicture, adapter, picture(1), 1.0, clip_vision=make_clip_vision("h"))
    assert picture_of(reference.thumbnail) is not None and nothing.thumbnail == ""


def test_what_a_mask_leaves_out_is_not_seen(adapter: LoadedAdapter) -> None:
    left = torch.zeros(1, 56, 56)
    left[:, :, :28] = 1
    one, other = picture(1), picture(2)
    mixed = torch.cat([one[:, :, :28], other[:, :, 28:]], dim=2)
    seen, again, whole = (
        encoded(adapter, image, mask=mask)[0].reference.pictures[0]
        for image, mask in ((one, left), (mixed, left), (one, torch.ones(1, 56, 56)))
    )
    # The mask is resized with soft edges.
    assert furthest(seen, again) < 0.2 * furthest(seen, whole)
    assert torch.equal(whole, encoded(adapter, one)[0].reference.pictures[0])


def test_the_last_mask_holds_for_all_further_pictures(adapter: LoadedAdapter) -> None:
    masks = torch.stack([torch.eye(56), torch.ones(56, 56)])
    three = encoded(adapter, torch.cat([picture(seed) for seed in (1, 2, 3)]), mask=masks)[0].reference.pictures
    alone = [encoded(adapter, picture(seed))[0].reference.pictures[0] for seed in (2, 3)]
    assert furthest(torch.cat(three[1:]), torch.cat(alone)) <= 1e-5


def test_an_encoded_picture_works_with_instantstyle_and_survives_a_file(adapter: LoadedAdapter, models: Path) -> None:
    (style,) = encoded(adapter, picture(1), weight=1.3)
    again = load_style(save_style(style, "weighted", VERSION), adapter)
    model = make_unet("sd15")
    assert torch.equal(sampled(styled(model, style)), sampled(styled(model, again)))
    assert not torch.equal(sampled(styled(model, style)), sampled(model))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"image": torch.full((1, 56, 56, 3), torch.nan)}, "The image holds pixels that are not numbers"),
        ({"image": torch.ones(1, 8, 56, 3)}, "The image is 56x8 pixels, too small"),
        ({"weight": float("nan")}, "A weight is nan, which is not a number to calculate with"),
        ({"mask": torch.zeros(1, 8, 8)}, "The mask is empty"),
        ({"mask": torch.ones(8, 8)}, "The mask has shape"),
        ({"mask": torch.full((1, 8, 8), torch.nan)}, "The mask holds values that are not numbers"),
        ({"clip_vision": None}, "The adapter came without an image encoder. Connect Load CLIP Vision to clip_vision"),
        ({"clip_vision": make_clip_vision("g")}, "This adapter needs .* but the image encoder connected is"),
    ],
)
def test_what_cannot_be_encoded_is_refused(adapter: LoadedAdapter, change: dict[str, Any], sentence: str) -> None:
    settings = {"image": picture(1), "weight": 1.0, "clip_vision": make_clip_vision("h")} | change
    with pytest.raises(ValueError, match=sentence):
        run(EncodePicture, adapter, **settings)


# Combine References


@pytest.mark.parametrize("method", METHODS)
def test_references_combine_as_in_ipadapter_plus(adapter: LoadedAdapter, method: str) -> None:
    first, *others = (
        replace(style, reference=replace(style.reference, pictures=(embedding.unsqueeze(0),)))
        for style, embedding in zip(
            encoded(adapter, *[picture(seed) for seed in (1, 2, 3)]), TENSORS["unit.clip.embeds"], strict=False
        )
    )
    combined = run(CombineReferences, first, method, *others)[0]
    expected = TENSORS[f"unit.combine.{method.replace(' ', '_')}"]
    assert furthest(torch.cat(combined.reference.pictures), expected) <= 1e-5
    assert combined.reference.weights == (1.0,) * len(expected)
    assert combined.adapter is first.adapter


@pytest.mark.parametrize("method", METHODS)
def test_one_reference_alone_stays_itself(adapter: LoadedAdapter, method: str) -> None:
    (style,) = encoded(adapter, picture(1))
    combined = run(CombineReferences, style, method)[0].reference
    assert torch.equal(combined.pictures[0], style.reference.pictures[0])
    assert torch.equal(combined.negative, style.reference.negative)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_combined_with_nothing_is_nothing(adapter: LoadedAdapter, method: str) -> None:
    nothing = run(EncodePicture, adapter, picture(1), 1.0, clip_vision=make_clip_vision("h"))[1]
    combined = run(CombineReferences, nothing, method, nothing)[0].reference
    assert all(torch.equal(found, nothing.reference.negative) for found in combined.pictures)


def test_a_batch_counts_as_its_pictures(adapter: LoadedAdapter) -> None:
    (batch,) = encoded(adapter, picture(1, images=2))
    (third,) = encoded(adapter, picture(3))
    found = run(CombineReferences, batch, "average", third)[0].reference.pictures[0]
    expected = torch.cat([*batch.reference.pictures, *third.reference.pictures]).mean(dim=0, keepdim=True)
    assert furthest(found, expected) <= 1e-6


@torch.no_grad()
def test_different_negatives_are_averaged_and_equal_ones_kept(adapter: LoadedAdapter) -> None:
    encoder = make_clip_vision("h")
    against, other = (encode(adapter, encoder, picture(seed), negative=picture(seed + 10)) for seed in (1, 2))
    found = run(CombineReferences, against, "concat", other)[0].reference.negative
    assert furthest(found, (against.reference.negative + other.reference.negative) / 2) <= 1e-6
    thrice = run(CombineReferences, against, "concat", against, against)[0].reference.negative
    assert torch.equal(thrice, against.reference.negative)


def test_a_combined_reference_shows_the_pictures_of_all(adapter: LoadedAdapter) -> None:
    styles = encoded(
        adapter, picture(1, 60, 120), picture(2, 90, 30), *[picture(seed, 64, 64) for seed in range(5)][:3]
    )
    two = picture_of(run(CombineReferences, styles[0], "max", styles[1])[0].thumbnail)
    assert two is not None
    assert two.shape[1:3] == (THUMBNAIL, THUMBNAIL * 2 + THUMBNAIL // 3)
    five = picture_of(run(CombineReferences, styles[0], "max", *styles[1:])[0].thumbnail)
    assert five is not None
    assert five.shape[2] <= 4 * THUMBNAIL


def test_what_a_reference_counts_and_lost_is_kept_by_concat(adapter: LoadedAdapter) -> None:
    encoder = make_clip_vision("h")
    weighted = encode(adapter, encoder, picture(1), picture(2), weights="1, 0.5")
    freed = replace(weighted, reference=weighted.reference.without(torch.ones(64), "a rabbit", 0.5))
    combined = run(CombineReferences, *encoded(adapter, picture(3)), "concat", freed)[0].reference
    assert combined.weights == (1.0, 1.0, 0.5)
    assert combined.subtracted == freed.reference.subtracted


def test_references_of_two_encoders_are_refused(models: Path) -> None:
    base, plus = load_adapter(models), load_adapter(models, variant="plus")
    (one,), (other,) = encoded(base, picture(1)), encoded(plus, picture(1))
    with pytest.raises(
        ValueError, match="Reference 1 was made for 'base .*' and reference 2 for 'plus .*', which read"
    ):
        run(CombineReferences, one, "concat", other)


def test_sums_of_tiles_and_of_counted_pictures_are_refused(adapter: LoadedAdapter) -> None:
    encoder = make_clip_vision("h")
    tiled = encode(adapter, encoder, picture(1, 56, 160), fit="tile")
    (whole,) = encoded(adapter, picture(2))
    assert len(run(CombineReferences, whole, "concat", tiled)[0].reference.pictures) == 2
    with pytest.raises(ValueError, match="cut into different numbers of tiles, so only 'concat' takes them"):
        run(CombineReferences, whole, "average", tiled)
    counted = encode(adapter, encoder, picture(1), weights="0.5")
    with pytest.raises(ValueError, match="A reference counts its pictures 1, 0.5 times, which only 'concat' keeps"):
        run(CombineReferences, whole, "average", counted)


# Noise Picture


def test_a_noise_picture_needs_no_picture_and_hangs_on_the_one_it_gets() -> None:
    black = run(NoisePicture, "fade", 1.0, 0)[0]
    assert black.shape == (1, 224, 224, 3)
    one, again, other = (run(NoisePicture, "dissolve", 0.5, 3, picture(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_noise_without_a_strength_that_is_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="The strength is nan"):
        run(NoisePicture, "fade", float("nan"), 0)
