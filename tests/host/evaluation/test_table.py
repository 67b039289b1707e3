"""Scores side by side: the table as text and as CSV."""

from __future__ import annotations

import csv
import io

import pytest

from semblance.host.evaluation.figures import estimated, shown, shown_alike
from semblance.host.evaluation.table import Table, harmless, tabulate
from semblance.metrics.scores import Measure, Scores


def scores(values: dict[str, tuple[float, ...]], protocol: str = "As published.", rows: tuple[str, ...] = ()) -> Scores:
    measures = tuple(Measure(name, numbers, higher_is_better=name != "LPIPS") for name, numbers in values.items())
    count = len(measures[0].values)
    return Scores(rows or tuple(f"picture {number}" for number in range(count)), measures, protocol)


def read(table: Table) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(table.csv(), newline="")))


def test_the_text_has_a_line_for_each_label_and_the_protocol_once() -> None:
    text = tabulate([scores({"text": (1.0, 3.0)}), scores({"text": (5.0, 5.0)})], ["weak", "strong"]).text()
    heads, _, weak, strong, *notes = text.splitlines()
    assert [cell.strip() for cell in heads.split("|")] == ["", "", "rows", "text (higher is better)", ""]
    assert [cell.strip() for cell in weak.split("|")] == ["", "weak", "2", "2.00 (1.00 to 3.00)", ""]
    assert [cell.strip() for cell in strong.split("|")] == ["", "strong", "2", "5.00 (5.00 to 5.00)", ""]
    assert sum("As published." in note for note in notes) == 1
    assert "protocols" not in text


def test_scores_of_one_measure_under_two_protocols_are_said_not_to_compare() -> None:
    differing = [scores({"text": (1.0, 2.0)}, "At 224 pixels."), scores({"text": (1.0, 2.0)}, "At 336 pixels.")]
    text = tabulate(differing, ["a", "b"]).text()
    assert "Protocol of a: At 224 pixels." in text and "Protocol of b: At 336 pixels." in text
    assert "text was measured under different protocols. Compare under the same protocol only." in text


def test_different_measures_may_have_protocols_of_their_own() -> None:
    text = tabulate([scores({"text": (1.0,)}, "By CLIP."), scores({"LPIPS": (1.0,)}, "By AlexNet.")], []).text()
    assert "By CLIP." in text and "By AlexNet." in text
    assert "different protocols" not in text
    assert "LPIPS (lower is better)" in text


def test_one_row_has_no_interval_and_the_table_says_so() -> None:
    text = tabulate([scores({"text": (0.25,)}), scores({"text": (0.25, 0.75)})], ["one", "two"]).text()
    assert "One row has no interval: one." in text
    assert "| 0.250  " in text and "0.500 (0.250 to 0.750)" in text


def test_a_value_that_is_no_number_is_called_so_and_has_no_interval() -> None:
    text = tabulate([scores({"text": (float("nan"), 1.0)})], []).text()
    assert "not a number" in text and " to " not in text


def test_the_file_holds_every_value_then_mean_and_interval() -> None:
    one, other = scores({"text": (0.1, 0.3), "style": (1.0, 2.0)}), scores({"LPIPS": (0.5,)})
    lines = read(tabulate([one, other], ["a", "b"]))
    assert [line["what"] for line in lines] == ["value", "value", "mean", "95 % from", "95 % to"] + [
        "value",
        "mean",
        "95 % from",
        "95 % to",
    ]
    assert [float(line["text"]) for line in lines[:2]] == [0.1, 0.3]
    assert float(lines[2]["text"]) == one["text"].mean
    assert (float(lines[3]["style"]), float(lines[4]["style"])) == one["style"].interval()
    assert lines[5] == {
        "scores": "b",
        "what": "value",
        "row": "picture 0",
        "text": "",
        "style": "",
        "LPIPS": "0.5",
        "protocol": "As published.",
    }
    assert [line["LPIPS"] for line in lines[7:]] == ["", ""]


@pytest.mark.parametrize("awkward", ['a, "b"\nc', "猫; 狐狸", "'", "a|b", "line\r\nline"])
def test_awkward_texts_come_back_from_the_file_as_they_were(awkward: str) -> None:
    lines = read(tabulate([scores({"text": (0.5,)}, awkward, (awkward,))], [awkward]))
    assert (lines[0]["scores"], lines[0]["row"], lines[0]["protocol"]) == (awkward,) * 3


@pytest.mark.parametrize("formula", ["=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1", '=HYPERLINK("http://x")', " =1+1"])
def test_no_cell_is_taken_for_a_formula(formula: str) -> None:
    lines = read(tabulate([scores({"text": (0.5,)}, formula, (formula,))], [formula]))
    for column in ("scores", "row", "protocol"):
        assert lines[0][column] == f"'{formula}"


def test_numbers_that_are_labels_stay_numbers() -> None:
    assert [harmless(text) for text in ("-0.5", "+1", "1e-3", "a fox")] == ["-0.5", "+1", "1e-3", "a fox"]


def test_bars_and_line_breaks_in_a_label_do_not_break_the_text_table() -> None:
    text = tabulate([scores({"text": (0.5,)})], ["a|b\nc"]).text()
    assert text.splitlines()[2].startswith("| a/b c |")


def test_columns_line_up_also_beside_chinese() -> None:
    heads, rule, chinese, english = tabulate([scores({"text": (0.5,)})] * 2, ["红狐狸", "fox"]).text().splitlines()[:4]
    assert len(heads) == len(rule) == len(english) == len(chinese) + 3


@pytest.mark.parametrize(("count", "labels"), [(2, ["a"]), (1, ["a", "b"])])
def test_labels_and_scores_of_different_number_are_refused(count: int, labels: list[str]) -> None:
    with pytest.raises(ValueError, match=r"There (is 1 label|are 2 labels) for (1|2) SCORES"):
        tabulate([scores({"text": (0.5,)})] * count, labels)


def test_scores_without_labels_are_numbered_and_no_scores_are_refused() -> None:
    assert tabulate([scores({"text": (0.5,)})] * 2, []).labels == ("scores 1", "scores 2")
    with pytest.raises(ValueError, match="no scores for the table"):
        tabulate([], [])


def test_numbers_that_are_compared_have_the_same_decimals() -> None:
    assert shown_alike([0.83, 0.010234, -0.5]) == ["0.830", "0.010", "-0.500"]
    assert shown_alike([1234.5, float("inf")]) == ["1234", "not a number"]
    assert shown_alike([0.0, 3e12]) == ["0", "3e+12"]
    assert shown_alike([0.0]) == ["0.000"]
    assert shown_alike([3e-12]) == ["0.000000000"]
    assert shown(0.123456) == "0.1235"
    assert estimated([0.6572, 0.5243], [(0.6455, 0.68), (0.3503, 0.6218)]) == [
        "0.657 (0.645 to 0.680)",
        "0.524 (0.350 to 0.622)",
    ]
