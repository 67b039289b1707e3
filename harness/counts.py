"""How many tests each session ran: fails where one failed, or where fewer ran than tests/counts.json asks for.

`python -m harness.counts tests laws` reads the reports that noxfile.py had pytest write; the last line is the sum.
A test that was skipped did not run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from .pinned import ROOT

REPORTS = ROOT / ".nox" / "reports"
EXPECTED = ROOT / "tests" / "counts.json"


@dataclass(frozen=True)
class Count:
    passed: int = 0
    failed: int = 0

    @classmethod
    def of(cls, report: Path) -> Count:
        """What a JUnit report of pytest holds; an error before or after a test is a failure."""
        if not report.is_file():
            return cls()
        suites = list(ElementTree.parse(report).getroot().iter("testsuite"))
        tests, skipped, failures, errors = (
            sum(int(suite.get(name, 0)) for suite in suites) for name in ("tests", "skipped", "failures", "errors")
        )
        return cls(max(tests - skipped - failures - errors, 0), failures + errors)

    @property
    def ran(self) -> int:
        return self.passed + self.failed

    def __add__(self, other: Count) -> Count:
        return Count(self.passed + other.passed, self.failed + other.failed)

    def __str__(self) -> str:
        return f"{self.passed} passed, {self.failed} failed"


def faults(counts: Mapping[str, Count], expected: Mapping[str, int]) -> list[str]:
    """What is wrong with the sessions' counts, a sentence each."""
    few = [
        f"{name}: {count.ran} tests ran, fewer than {expected[name]}. "
        f"If tests were taken away on purpose, write the new number into {EXPECTED.relative_to(ROOT)}."
        for name, count in counts.items()
        if count.ran < expected[name]
    ]
    return [f"{name}: {count.failed} tests failed." for name, count in counts.items() if count.failed] + few


def main(sessions: Iterable[str]) -> int:
    counts = {name: Count.of(REPORTS / f"{name}.xml") for name in sessions}
    for name, count in counts.items():
        print(f"{name}: {count}")
    found = faults(counts, json.loads(EXPECTED.read_text(encoding="utf-8")))
    print(*found, sum(counts.values(), Count()), sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
