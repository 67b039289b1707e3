"""Pictures are checked before anything is made of them, and fitted to the encoder's square without surprises."""

from __future__ import annotations

import numpy
import pytest
import torch
from PIL import Image
from torch import Tensor

from semblance.host.pictures import FITS, Fit, check_picture, fit_picture

RED, GREEN, BLUE = (torch.tensor(colour) for colour in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)))
GROUND = (0.2, 0.4, 0.6)
SIZE = 32


def stripes(upright: bool = False) -> Tensor:
    """Three squares beside one another, or with `upright` above one another: red, green, blue."""
    picture = torch.stack([colour.expand(SIZE, SIZE, 3) for colour in (RED, GREEN, BLUE)], dim=1).flatten(1, 2)
    return picture.transpose(0, 1) if upright else picture


def noise(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.rand((height, width, 3), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("upright", [False, True])
def test_crop_shows_the_middle_and_loses_both_borders(upright: bool) -> None:
    (crop,) = fit_picture(stripes(upright), SIZE, "crop", GROUND)
    assert torch.equal(crop, GREEN.expand(SIZE, SIZE, 3))


@pytest.mark.parametrize("upright", [False, True])
def test_tile_shows_all_of_it_in_reading_order(upright: bool) -> None:
    crops = fit_picture(stripes(upright), SIZE, "tile", GROUND)
    assert torch.equal(crops, torch.stack([colour.expand(SIZE, SIZE, 3) for colour in (RED, GREEN, BLUE)]))


@pytest.mark.parametrize("upright", [False, True])
def test_pad_shows_all_of_it_on_the_ground(upright: bool) -> None:
    (padded,) = fit_picture(stripes(upright), SIZE, "pad", GROUND)
    padded = padded.transpose(0, 1) if upright else padded
    middle = SIZE // 2
    for place, colour in ((4, RED), (middle, GREEN), (SIZE - 5, BLUE)):
        torch.testing.assert_close(padded[middle, place], colour, atol=0.02, rtol=0)
    for row in (0, SIZE - 1):
        torch.testing.assert_close(padded[row], torch.tensor(GROUND).expand(SIZE, 3), atol=0.01, rtol=0)


@pytest.mark.parametrize("long", [SIZE + 1, 3 * SIZE // 2, 2 * SIZE, 2 * SIZE + 1])
def test_tiles_overlap_evenly_and_reach_both_ends(long: int) -> None:
    picture = noise(SIZE, long)
    crops = fit_picture(picture, SIZE, "tile", GROUND)
    expected = (picture * 255).round() / 255
    assert len(crops) == (2 if long <= 2 * SIZE else 3)
    assert torch.equal(crops[0], expected[:, :SIZE]) and torch.equal(crops[-1], expected[:, -SIZE:])


@pytest.mark.parametrize("fit", FITS)
def test_square_picture_of_the_encoders_size_passes_unchanged(fit: Fit) -> None:
    picture = noise(SIZE, SIZE)
    (seen,) = fit_picture(picture, SIZE, fit, GROUND)
    assert torch.equal(seen, (picture * 255).round() / 255)


@pytest.mark.parametrize(("height", "width"), [(48, 80), (80, 48), (33, 97), (50, 50)])
def test_crop_equals_clips_own_preprocessing(height: int, width: int) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil as CLIPImageProcessor

    levels = (noise(height, width) * 255).round().to(torch.uint8).numpy()
    official = CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    expected = official(Image.fromarray(levels), do_rescale=False, do_normalize=False)["pixel_values"][0]
    (crop,) = fit_picture(torch.from_numpy(levels) / 255, SIZE, "crop", GROUND)
    assert numpy.array_equal((crop * 255).round().numpy(), numpy.moveaxis(numpy.asarray(expected), 0, -1))


@pytest.mark.parametrize(("height", "width"), [(48, 80), (80, 48), (33, 97), (16, 20), (50, 50)])
def test_stretch_equals_siglips_own_preprocessing(height: int, width: int) -> None:
    """InstantX's code takes it as it is: the whole picture, squashed to a square."""
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil as SiglipImageProcessor

    levels = (noise(height, width) * 255).round().to(torch.uint8).numpy()
    official = SiglipImageProcessor(size={"height": SIZE, "width": SIZE})
    expected = official(Image.fromarray(levels), do_rescale=False, do_normalize=False)["pixel_values"][0]
    (seen,) = fit_picture(torch.from_numpy(levels) / 255, SIZE, "stretch", GROUND)
    assert numpy.array_equal((seen * 255).round().numpy(), numpy.moveaxis(numpy.asarray(expected), 0, -1))


def test_crop_stays_the_fit_of_old_workflows_and_the_default() -> None:
    assert FITS[:3] == ("crop", "pad", "tile")


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize(("height", "width"), [(16, 16), (16, 400), (400, 16), (17, 31), (512, 513)])
def test_any_shape_becomes_squares_in_range(fit: Fit, height: int, width: int) -> None:
    crops = fit_picture(noise(height, width) * 3 - 1, SIZE, fit, GROUND)
    assert crops.shape[1:] == (SIZE, SIZE, 3) and len(crops) >= 1
    assert crops.min() >= 0 and crops.max() <= 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_pictures_of_other_precisions_are_read(dtype: torch.dtype) -> None:
    picture = stripes().to(dtype)
    check_picture(picture.unsqueeze(0), "The image")
    assert torch.equal(fit_picture(picture, SIZE, "tile", GROUND), fit_picture(stripes(), SIZE, "tile", GROUND))


def test_picture_is_not_changed_in_place() -> None:
    picture = noise(40, 60) * 2
    before = picture.clone()
    for fit in FITS:
        fit_picture(picture, SIZE, fit, GROUND)
    assert torch.equal(picture, before)


@pytest.mark.parametrize("shape", [(0, 64, 64, 3), (1, 0, 64, 3), (1, 64, 0, 3), (64, 64, 3), (1, 64, 64, 0)])
def test_no_picture_is_refused_with_its_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"The image at 'picture0' holds no picture.*shape is \(.*Connect an image"):
        check_picture(torch.zeros(shape), "The image at 'picture0'")


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_other_channels_are_refused_with_what_to_do(channels: int) -> None:
    with pytest.raises(ValueError, match=f"has {channels} channels; expected 3 .*convert it to RGB"):
        check_picture(torch.zeros(1, 64, 64, channels), "The image")


@pytest.mark.parametrize(("height", "width"), [(1, 1), (15, 300), (300, 15)])
def test_tiny_pictures_are_refused_with_their_size(height: int, width: int) -> None:
    with pytest.raises(ValueError, match=f"is {width}x{height} pixels, too small.*at least 16x16.*Choose a larger"):
        check_picture(torch.zeros(1, height, width, 3), "The image")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_pixels_that_are_no_numbers_are_refused(value: float) -> None:
    picture = noise(32, 32).unsqueeze(0)
    picture[0, 5, 5, 1] = value
    with pytest.raises(ValueError, match="not numbers .*Check the node that made it"):
        check_picture(picture, "The image")
