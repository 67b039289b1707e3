"""What the demo shows: the sheet, the chart, the page."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from semblance.demo.contact_sheet import MARGIN, SIDE, contact_sheet
from semblance.demo.page import Section, text_table, write_page
from semblance.demo.probe import Finding, chart
from semblance.demo.run import Shot, changed


def test_the_sheet_holds_every_picture_over_its_name(tmp_path: Path) -> None:
    colours = ("red", "green", "blue")
    for colour in colours:
        Image.new("RGB", (20, 20), colour).save(tmp_path / f"{colour}.png")
    rows = [[Shot(c, tmp_path / f"{c}.png", "two\nlines") for c in colours], [Shot("red", tmp_path / "red.png")]]
    with Image.open(contact_sheet(rows, tmp_path / "sheet.png")) as sheet:
        assert sheet.width == 3 * (SIDE + MARGIN) + MARGIN
        middles = [sheet.getpixel((MARGIN + SIDE // 2 + place * (SIDE + MARGIN), 100)) for place in range(3)]
        assert middles == [(255, 0, 0), (0, 128, 0), (0, 0, 255)]
        under = sheet.crop((MARGIN, MARGIN + SIDE + 2, MARGIN + SIDE, MARGIN + SIDE + 24))
        assert min(under.convert("L").tobytes()) < 128  # the name is written there


def test_the_chart_draws_longer_bars_for_larger_values(tmp_path: Path) -> None:
    low, high = (Finding("output.1", gained, 0.0, 1.0, 1.0, 0.1, 0.1) for gained in (0.2, 0.8))

    def ink(finding: Finding) -> int:
        with Image.open(chart([finding], "title", tmp_path / "chart.png")) as picture:
            return sum(pixel == (42, 127, 142) for pixel in picture.convert("RGB").getdata())

    assert ink(high) > 2 * ink(low)


def test_the_page_shows_pictures_and_tables_and_escapes_what_it_is_given(tmp_path: Path) -> None:
    (tmp_path / "sheet.png").touch()
    sections = [
        Section("A & B", "what <it> is", tmp_path / "sheet.png"),
        Section("Figures", "means", table=[["setting", "leaked"], ["plain", "1 %"]]),
    ]
    page = write_page(sections, tmp_path / "index.html").read_text(encoding="utf-8")
    assert '<img src="sheet.png"' in page and "A &amp; B" in page and "<it>" not in page
    assert "<th>setting</th><th>leaked</th>" in page and "<td>plain</td><td>1 %</td>" in page


def test_a_table_for_the_terminal_stands_in_columns() -> None:
    assert text_table([["a", "b"], ["long", "c"]]) == "a     b\nlong  c"


def test_inputs_are_changed_by_the_type_and_by_the_title_of_a_node() -> None:
    node = {"class_type": "CLIPTextEncode", "inputs": {"text": "old", "clip": ["1", 0]}}
    prompt = {
        "2": {**node, "_meta": {"title": "Prompt"}},
        "3": {**node, "_meta": {"title": "Negative prompt"}},
    }
    made = changed(prompt, {"Prompt": {"text": "new"}, "CLIPTextEncode": {"clip": ["9", 0]}})
    assert made["2"]["inputs"] == {"text": "new", "clip": ["9", 0]}
    assert made["3"]["inputs"] == {"text": "old", "clip": ["9", 0]}
    assert prompt["2"]["inputs"]["text"] == "old"
