"""Score Table: several SCORES, or a list of them through one socket, as text, file and chart."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import folder_paths
import pytest

from semblance.host.files import UnwritableFile
from semblance.metrics.scores import Measure, Scores
from semblance.nodes.score_table import ScoreTable
from semblance.tests.support.graphs import run

ONE = Scores(("a fox", "=1+1"), (Measure("text", (0.25, 0.75), True),), "By the tiny model.")
OTHER = Scores(("FID",), (Measure("FID", (12.5,), False),), "By another.")


@pytest.fixture
def output(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "output"
    monkeypatch.setattr(folder_paths, "output_directory", str(folder))
    return folder


def tabulated(*sockets: list[Any], labels: list[Any], prefix: str = "tables/scores") -> Any:
    """The NodeOutput, by the node as ComfyUI calls it: with every input as a list."""
    scores = {f"scores{number}": socket for number, socket in enumerate(sockets)}
    return run(ScoreTable, scores=scores, labels=labels, filename_prefix=[prefix], look=["light"])


def test_text_chart_and_file_hold_the_same_scores(output: Path) -> None:
    text, chart, file = tabulated([ONE], [OTHER], labels=["first\nsecond"]).result
    assert file == "tables/scores_00001_.csv"
    with (output / file).open(encoding="utf-8-sig", newline="") as opened:
        lines = list(csv.DictReader(opened))
    assert [line["scores"] for line in lines] == ["first"] * 5 + ["second"] * 4
    assert [line["row"] for line in lines[:2]] == ["a fox", "'=1+1"]
    assert [line["text"] for line in lines[:3]] == ["0.25", "0.75", "0.5"]
    assert "| first " in text and "0.500 (0.250 to 0.750)" in text and "One row has no interval: second." in text
    assert chart.shape[0] == 1 and chart.shape[3] == 3


def test_a_second_run_writes_a_second_file(output: Path) -> None:
    files = [tabulated([ONE], labels=[""])[2] for _ in range(2)]
    assert files == ["tables/scores_00001_.csv", "tables/scores_00002_.csv"]


def test_a_list_through_one_socket_is_labelled_by_a_list_of_numbers(output: Path) -> None:
    text = tabulated([ONE, ONE, OTHER], labels=[0.0, 0.5, 1.0])[0]
    assert [line.split("|")[1].strip() for line in text.splitlines()[2:5]] == ["0", "0.5", "1"]


def test_the_node_shows_chart_table_and_file(output: Path) -> None:
    shown = tabulated([ONE], labels=[""]).ui
    assert len(shown["images"]) == 1
    assert "By the tiny model." in shown["text"][0]
    assert shown["files"][0]["filename"] == "scores_00001_.csv"


def test_a_prefix_that_leads_out_is_refused_and_nothing_is_written(output: Path) -> None:
    with pytest.raises(UnwritableFile, match="is not a name for a table"):
        tabulated([ONE], labels=[""], prefix="../scores")
    assert not output.exists() or list(output.rglob("*")) == []


def test_a_socket_that_gave_nothing_is_left_out(output: Path) -> None:
    assert "scores 1" in tabulated([None], [ONE], labels=[""])[0]
