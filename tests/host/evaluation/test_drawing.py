"""Text fitted to its place, and the font that can draw it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from semblance.host.evaluation import fonts
from semblance.host.evaluation.drawing import INKS, fit_text, height_of, write
from semblance.host.evaluation.fonts import Typeface, typeface_for
from semblance.host.pictures import image_of, tensor_of

SIZE = 20


@pytest.fixture
def no_fonts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A computer without fonts."""
    monkeypatch.setattr(fonts, "FOLDERS", ())
    fonts._typeface.cache_clear()
    yield
    fonts._typeface.cache_clear()


@pytest.mark.parametrize("text", ["a red fox in the snow, at night", "Donaudampfschifffahrtsgesellschaft", "a" * 5000])
def test_no_line_is_wider_than_its_place(text: str) -> None:
    lines = fit_text(text, Typeface(), SIZE, 120, 3)
    assert 1 <= len(lines) <= 3
    assert max(Typeface().font(SIZE).getlength(line) for line in lines) <= 120


def test_what_fits_stays_as_it_is_and_what_does_not_ends_in_dots() -> None:
    assert fit_text("a fox", Typeface(), SIZE, 400, 1) == ["a fox"]
    (short,) = fit_text("a red fox in the snow at night", Typeface(), SIZE, 120, 1)
    assert short.endswith("...") and "a red fox in the snow".startswith(short.removesuffix("..."))


def test_wrapped_words_are_those_of_the_text() -> None:
    text = "a red fox in the snow, at night"
    assert " ".join(fit_text(text, Typeface(), SIZE, 120, 9)) == text


def test_an_empty_text_has_no_lines_and_control_characters_become_spaces() -> None:
    assert fit_text(" \n\t ", Typeface(), SIZE, 120, 3) == []
    assert fit_text("a\nfox\x00\ud800", Typeface(), SIZE, 400, 1) == ["a fox ?"]


def test_chinese_lines_break_between_characters_but_not_before_a_comma() -> None:
    assert fonts.one_line("一只红狐狸，\n在雪地里") == "一只红狐狸， 在雪地里"
    lines = fit_text("一只红狐狸，在雪地里，很冷", Typeface(), SIZE, SIZE * 4, 9)
    assert all(not line.startswith("，") for line in lines)


def test_on_a_computer_without_fonts_nothing_is_drawn_as_a_box_and_it_is_said(no_fonts: None) -> None:
    typeface = typeface_for(["café 猫", "a fox"])
    assert typeface == Typeface(None, "é猫")
    assert typeface.drawable("café 猫") == "cafe ?"
    assert "é猫" in typeface.warning() and "Noto Sans CJK" in typeface.warning()


def test_english_is_drawn_alike_everywhere_without_a_word() -> None:
    assert typeface_for(["a fox, 0.5 - 7.25 (text)"]) == Typeface()
    assert Typeface().warning() == ""


def test_a_font_of_the_computer_that_has_the_characters_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A damaged font before it is passed over. The file stands for one that has what Pillow's own has not."""
    (tmp_path / "DejaVuSans.ttf").write_bytes(b"no font")
    own = ImageFont.load_default(size=SIZE).font_bytes  # pyright: ignore[reportAttributeAccessIssue]
    (tmp_path / "sub").mkdir()
    good = tmp_path / "sub" / "Some Font.ttf"
    good.write_bytes(own)
    monkeypatch.setattr(fonts, "FOLDERS", (str(tmp_path), str(tmp_path / "nowhere")))
    assert list(fonts._font_files()) == [tmp_path / "DejaVuSans.ttf", good]
    assert fonts._not_in(tmp_path / "DejaVuSans.ttf", "ab") == "ab"
    assert fonts._not_in(good, "ab猫") == "猫"


def test_plain_fonts_come_before_fancy_ones() -> None:
    names = ["Zebra.ttf", "NotoSansCJK-Bold.ttc", "NotoSansCJK-Regular.ttc", "DejaVuSans-Bold.ttf", "DejaVuSans.ttf"]
    ranked = sorted(map(Path, names), key=fonts._rank)
    assert [path.name for path in ranked] == list(reversed(names[3:])) + list(reversed(names[1:3])) + names[:1]


def test_text_stays_inside_its_lines_wherever_it_is_written() -> None:
    image = Image.new("L", (300, 200), 0)
    for side, left in (("left", 100), ("middle", 150), ("right", 200)):
        image.paste(0, (0, 0, 300, 200))
        write(ImageDraw.Draw(image), (left, 50), ["Jgy", "fox"], Typeface(), SIZE, "white", side)  # pyright: ignore[reportArgumentType]
        box = image.getbbox()
        assert box is not None
        assert box[0] + 1 >= 100 and box[2] <= 201 and box[1] >= 50 and box[3] <= 50 + height_of(2, SIZE)


def test_pictures_go_to_pillow_and_back_at_eight_bits() -> None:
    picture = torch.randint(256, (5, 7, 3)) / 255
    assert torch.equal(tensor_of(image_of(picture))[0], picture)


@pytest.mark.parametrize("look", INKS)
def test_every_ink_stands_out_from_its_paper(look: str) -> None:
    """The contrast of the WCAG: 4.5 for text, 3 for bars."""
    ink = INKS[look]  # pyright: ignore[reportArgumentType]
    assert (
        contrast(ink.text, ink.paper) > 7 and contrast(ink.pale, ink.paper) > 4.5 and contrast(ink.bar, ink.paper) > 3
    )


def contrast(one: str, other: str) -> float:
    low, high = sorted(_luminance(colour) + 0.05 for colour in (one, other))
    return high / low


def _luminance(colour: str) -> float:
    levels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [level / 12.92 if level <= 0.03928 else ((level + 0.055) / 1.055) ** 2.4 for level in levels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
