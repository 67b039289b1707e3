"""What the demo makes of the files and pictures of the scoring nodes."""

from __future__ import annotations

from pathlib import Path

from semblance.demo.evaluation import NOISES, _by_rows, table_of
from semblance.demo.run import template
from semblance.host.evaluation.table import tabulate
from semblance.metrics.scores import Measure, Scores


def test_the_table_on_the_page_is_that_of_the_file(tmp_path: Path) -> None:
    weak = Scores(("a", "b"), (Measure("text", (0.5, 0.25), True), Measure("style", (0.1, 0.1), True)), "p")
    (tmp_path / "scores.csv").write_bytes(tabulate([weak], ["0.5"]).csv().encode("utf-8-sig"))
    assert table_of(tmp_path / "scores.csv") == [
        ["strength", "text", "style"],
        ["0.5", "0.375 (0.25 to 0.5)", "0.1 (0.1 to 0.1)"],
    ]


def test_on_the_page_each_strength_is_a_row() -> None:
    by_type = {node["class_type"]: node["inputs"] for node in _by_rows(template("compare_strengths")).values()}
    grid = by_type["SemblancePictureGrid"]
    assert (grid["order"], grid["column_captions"]) == ("row by row", "")
    assert grid["row_captions"] == by_type["SemblanceInstantStyle"]["strength"]
    assert by_type["EmptyLatentImage"]["batch_size"] == NOISES
