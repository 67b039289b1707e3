"""Thumbnails come from strangers: small JPEGs are shown, anything else is told in the log and costs no memory."""

from __future__ import annotations

import base64
import io
import logging

import pytest
import torch
from PIL import Image, ImageFile

from semblance.host.thumbnails import MOST_PIXELS, picture_of, thumbnail_of


def file_of(kind: str, side: int, colour: str = "red") -> str:
    """A square picture as a data URL that calls itself a JPEG."""
    file = io.BytesIO()
    Image.new("RGB" if kind == "JPEG" else "1", (side, side), colour if kind == "JPEG" else 1).save(file, kind)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def test_what_is_saved_is_shown() -> None:
    shown = picture_of(thumbnail_of(torch.full((2, 56, 56, 3), 0.5)))
    assert shown is not None and shown.shape == (1, 56, 112, 3)
    assert (shown - 0.5).abs().max() < 0.02


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "TIFF"])
def test_only_jpeg_is_opened(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert picture_of(file_of(kind, 16)) is None
    assert ["not a small JPEG picture" in record.message for record in caplog.records] == [True]


@pytest.mark.parametrize(("kind", "side"), [("JPEG", 2049), ("PNG", 13300)])
def test_a_picture_too_large_is_not_decoded(
    kind: str, side: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The PNG has 22 KB, which unpack to half a gigabyte, and to 2 GB as an IMAGE."""
    thumbnail = file_of(kind, side)
    assert side**2 > MOST_PIXELS and len(thumbnail) < 200_000
    decoded: list[str] = []
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: decoded.append(image.format))
    with caplog.at_level(logging.WARNING):
        assert picture_of(thumbnail) is None
    assert not decoded and "is not shown" in caplog.text
