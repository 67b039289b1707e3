"""Folders of pictures: contained, in order, one at a time, and what cannot be read is left out and counted."""

from __future__ import annotations

import os
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from semblance.host.evaluation import folders
from semblance.host.evaluation.folders import UnreadablePicture, open_folder
from semblance.host.evaluation.sources import PictureBatch, Reading, cut_report, scaled
from semblance.host.files import UnreadableFile
from semblance.tests.support.evaluation import as_image, write_pictures
from semblance.tests.support.graphs import picture


def test_pictures_come_in_the_order_of_their_names_and_in_their_own_sizes(place: Path) -> None:
    folder = place / "output" / "styled"
    folder.mkdir()
    shown = {"b.jpg": (20, 30), "a.png": (40, 16), "c.webp": (33, 17), "D.PNG": (18, 19)}
    for name, (height, width) in shown.items():
        as_image(picture(1, height, width)[0]).save(folder / name)
    (folder / "notes.txt").write_text("not a picture")
    (folder / "._a.png").write_bytes(b"what macOS writes beside a picture")
    (folder / "deeper").mkdir()
    (folder / "folder.png").mkdir()
    as_image(picture()[0]).save(folder / "deeper" / "e.png")
    found = open_folder("output/styled")
    assert found.names == ("D.PNG", "a.png", "b.jpg", "c.webp")
    assert [tuple(found.read(index).shape[1:3]) for index in range(4)] == [shown[name] for name in found.names]
    assert torch.equal(found.read(1), picture(1, 40, 16))


@pytest.mark.parametrize("written", ["output/styled", "output/styled/", " output\\styled", '"output/styled"', "whole"])
def test_a_folder_is_found_as_people_write_it(place: Path, written: str) -> None:
    path = write_pictures(place / "output" / "styled", picture())
    assert len(open_folder(str(path) if written == "whole" else written)) == 1


@pytest.mark.parametrize("written", ["../secret", "output/../secret", "secret", "/etc", "input/../../secret", "", "."])
def test_a_folder_outside_input_and_output_is_refused(place: Path, written: str) -> None:
    write_pictures(place / "secret", picture())
    with pytest.raises(UnreadableFile, match="is not a folder under ComfyUI's input or output. Write a folder such"):
        open_folder(written)


def test_a_link_that_leads_out_is_refused_or_left_out(place: Path) -> None:
    secret = write_pictures(place / "secret", picture())
    (place / "output" / "link").symlink_to(secret)
    with pytest.raises(UnreadableFile, match="is a link that leads out of .*Copy the pictures there"):
        open_folder("output/link")
    folder = write_pictures(place / "output" / "own", picture())
    (folder / "001.png").symlink_to(secret / "000.png")
    with pytest.raises(UnreadablePicture, match="a link that leads out"):
        open_folder("output/own").read(1)


def test_an_empty_or_missing_folder_is_refused(place: Path) -> None:
    (place / "input" / "empty").mkdir()
    with pytest.raises(UnreadableFile, match="holds no picture .PNG, JPEG.*those of its subfolders do not count"):
        open_folder("input/empty")
    with pytest.raises(UnreadableFile, match="There is no folder 'input/none'"):
        open_folder("input/none")


@pytest.mark.parametrize("written", ["output/" + "x" * 5000, "input/\0"])
def test_a_name_that_no_system_takes_is_refused(place: Path, written: str) -> None:
    with pytest.raises(UnreadableFile, match="cannot be read .File name too long.|There is no folder"):
        open_folder(written)


def test_what_cannot_be_read_is_left_out_and_counted(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_pictures(place / "input" / "some", picture(images=3))
    whole = (folder / "000.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "text.jpg").write_text("a picture by its name alone")
    as_image(picture(0, 70, 70)[0]).save(folder / "huge.png")
    monkeypatch.setattr(folders, "MOST_PIXELS", 60 * 60)
    found = open_folder("input/some")
    reading = Reading(len(found))
    seen = [row for row, _ in reading.through(found)]
    assert seen == [0, 1, 2]
    assert reading.skipped == {
        "input/some/cut.png": "the file is damaged",
        "input/some/huge.png": "70x70 pixels, above 3,600 in all",
        "input/some/text.jpg": "not a picture of a known kind",
    }
    assert reading.skipped_report().startswith("Left out, 3 in all: input/some/cut.png (the file is damaged), ")


def test_a_bomb_is_not_unpacked(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_pictures(place / "input" / "some", picture())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(UnreadablePicture, match="above 33,554,432 pixels in all"):
        folders.read_picture(folder / "000.png", place / "input")


def test_a_picture_is_turned_as_load_image_turns_it(place: Path) -> None:
    from nodes import LoadImage

    folder = place / "input" / "camera"
    folder.mkdir()
    orientation = Image.Exif()
    orientation[0x0112] = 6
    as_image(picture(1, 20, 40)[0]).save(folder / "turned.png", exif=orientation)
    ours = open_folder("input/camera").read(0)
    theirs, _ = LoadImage().load_image("camera/turned.png")
    assert ours.shape == theirs.shape == (1, 40, 20, 3)
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_sixteen_bits_of_grey_keep_their_brightness(place: Path) -> None:
    levels = numpy.linspace(0, 65535, 400).astype(numpy.uint16).reshape(20, 20)
    Image.fromarray(levels).save(place / "input" / "deep.png")
    seen = folders.read_picture(place / "input" / "deep.png", place / "input")
    assert torch.allclose(seen[0, ..., 0], torch.from_numpy(levels.astype(numpy.float32) / 65535))


def test_the_fingerprint_tells_when_a_folder_changes(place: Path) -> None:
    folder = write_pictures(place / "input" / "some", picture(images=2))
    prints = {open_folder("input/some").fingerprint() for _ in range(2)}
    os.utime(folder / "000.png", ns=(1, 1))
    prints.add(open_folder("input/some").fingerprint())
    (folder / "000.png").rename(folder / "other.png")
    prints.add(open_folder("input/some").fingerprint())
    (folder / "other.png").unlink()
    prints.add(open_folder("input/some").fingerprint())
    assert len(prints) == 4


def test_a_pair_is_left_out_with_its_partner(place: Path) -> None:
    write_pictures(place / "input" / "a", picture(1, images=3))
    second = write_pictures(place / "input" / "b", picture(2, images=3))
    (second / "001.png").write_bytes(b"broken")
    reading = Reading(3)
    rows = [row for row, _ in reading.through(open_folder("input/a"), open_folder("input/b"))]
    assert rows == [0, 2] and list(reading.skipped) == ["input/b/001.png"]


def test_a_folder_of_nothing_but_broken_files_is_refused(place: Path) -> None:
    (place / "input" / "a").mkdir()
    (place / "input" / "a" / "x.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match="No picture of input/a can be measured: input/a/x.png is not a picture of a"):
        list(Reading(1).through(open_folder("input/a")))


def test_an_interrupt_stops_the_reading(place: Path) -> None:
    import comfy.model_management as management

    source = PictureBatch("a", picture(images=3))
    rows = Reading(3).through(source)
    next(rows)
    management.interrupt_current_processing()
    with pytest.raises(management.InterruptProcessingException):
        next(rows)


def test_scaling_keeps_the_shape_and_agrees_with_torchvision() -> None:
    from torchvision.transforms import InterpolationMode, Resize
    from torchvision.transforms.functional import pil_to_tensor

    shown = picture(1, 40, 61)
    theirs = Resize(24, InterpolationMode.BILINEAR)(as_image(shown[0]))
    ours = scaled(shown, 24)
    assert ours.shape == (1, 24, 36, 3)
    assert torch.equal((ours[0] * 255).round().byte(), pil_to_tensor(theirs).movedim(0, -1))
    assert scaled(shown, 0) is shown and scaled(shown, 40) is shown


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_pixels_that_are_not_numbers_are_refused(value: float) -> None:
    images = picture(images=2)
    images[1, 3, 3, 0] = value
    with pytest.raises(ValueError, match="The input a holds pixels that are not numbers"):
        PictureBatch("a", images)


def test_values_outside_the_range_are_cut_off_but_not_in_silence() -> None:
    images = picture(images=2)
    images[1, 3, 3, 0], images[0, 2, 2, 1] = 1.3, -0.2
    batch = PictureBatch("a", images)
    assert batch.read(1).max() == 1
    assert cut_report(batch, PictureBatch("b", picture())) == (
        "a holds values from -0.2 to 1.3: it was measured cut off at 0 and 1, as ComfyUI saves pictures."
    )
    images = images.clamp(0, 1)
    images[0, 0, 0, 0] = 1.005
    assert cut_report(PictureBatch("a", images)) == ""


def test_pictures_of_another_range_are_refused_before_they_are_cut_off() -> None:
    with pytest.raises(ValueError, match="The input a holds values from .* to 2.*; pictures hold 0 to 1. Check the"):
        PictureBatch("a", 255 * picture())


def test_a_picture_that_is_too_small_to_be_measured_is_not_said_to_show_no_style() -> None:
    with pytest.raises(ValueError, match="The input a is 8x8 pixels, too small to be measured; expected at least 16"):
        PictureBatch("a", picture(0, 8, 8))
