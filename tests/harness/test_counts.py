"""A session's report is counted whole, and one in which tests are missing is no success."""

from __future__ import annotations

from pathlib import Path

import pytest

from semblance.harness import counts
from semblance.harness.counts import Count, faults


def report(path: Path, **numbers: int) -> None:
    written = " ".join(f'{name}="{number}"' for name, number in numbers.items())
    path.write_text(f"<testsuites><testsuite {written}/></testsuites>")


def test_what_was_skipped_did_not_run_and_an_error_is_a_failure(tmp_path: Path) -> None:
    report(tmp_path / "laws.xml", tests=10, skipped=2, failures=1, errors=1)
    assert Count.of(tmp_path / "laws.xml") == Count(6, 2)
    assert Count.of(tmp_path / "nowhere.xml") == Count(0, 0)


def test_fewer_tests_than_are_written_down_are_a_fault_and_more_are_none() -> None:
    assert faults({"tests": Count(5), "laws": Count(9)}, {"tests": 5, "laws": 8}) == []
    (few,) = faults({"tests": Count(4)}, {"tests": 5})
    assert few.startswith("tests: 4 tests ran, fewer than 5.") and "counts.json" in few


def test_the_last_line_is_the_sum_of_all_sessions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(counts, "REPORTS", tmp_path)
    report(tmp_path / "tests.xml", tests=10**6)
    report(tmp_path / "laws.xml", tests=10**6, failures=1)
    assert counts.main(["tests"]) == 0
    assert counts.main(["tests", "laws"]) == 1
    assert capsys.readouterr().out.splitlines()[-2:] == ["laws: 1 tests failed.", "1999999 passed, 1 failed"]
    assert counts.main(["tests", "browser"]) == 1  # which never ran
