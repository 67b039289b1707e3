"""Scores side by side, as a text to read and as a CSV file to calculate with."""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from ...metrics.scores import Measure, Scores
from .figures import estimated, interval_of

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""With these a spreadsheet takes a text for a formula."""
NOTHING = "-"


@dataclass(frozen=True)
class Heading:
    """What a measure is called, wherever it was measured."""

    name: str
    unit: str
    higher_is_better: bool

    @property
    def title(self) -> str:
        return f"{self.name}, {self.unit}" if self.unit else self.name

    @property
    def better(self) -> str:
        return f"{'higher' if self.higher_is_better else 'lower'} is better"

    def of(self, scores: Scores) -> Measure | None:
        """The measure of these scores under this heading, if they have one."""
        return next((measure for measure in scores.measures if _heading(measure) == self), None)


@dataclass(frozen=True)
class Table:
    """Scores under their labels, in the order of the user."""

    labels: tuple[str, ...]
    scores: tuple[Scores, ...]

    @property
    def headings(self) -> list[Heading]:
        """Each once, in the order in which the scores bring them."""
        return list(dict.fromkeys(_heading(measure) for scores in self.scores for measure in scores.measures))

    def text(self) -> str:
        """Means with intervals, a line for each label; then how they were measured, and what not to read into them."""
        heads = ["", "rows", *(f"{heading.title} ({heading.better})" for heading in self.headings)]
        columns = [_cells([heading.of(scores) for scores in self.scores]) for heading in self.headings]
        rows = [str(len(scores.rows)) for scores in self.scores]
        lines = [list(line) for line in zip(self.labels, rows, *columns, strict=True)]
        return "\n".join([_aligned([heads, *lines]), "", *self.notes()])

    def csv(self) -> str:
        """Every value, then mean and interval: a line for each, a column for each measure."""
        file = io.StringIO()
        writer = csv.writer(file)
        writer.writerow(["scores", "what", "row", *(harmless(h.title) for h in self.headings), "protocol"])
        for label, scores in zip(self.labels, self.scores, strict=True):
            columns = [heading.of(scores) for heading in self.headings]
            for what, row, values in _lines_of(scores, columns):
                writer.writerow([harmless(label), what, harmless(row), *values, harmless(scores.protocol)])
        return file.getvalue()

    def notes(self) -> list[str]:
        """How the scores were measured, and what not to read into them."""
        protocols = list(dict.fromkeys(scores.protocol for scores in self.scores))
        single = [label for label, scores in zip(self.labels, self.scores, strict=True) if len(scores.rows) == 1]
        notes = ["In brackets: the 95 % interval of the mean, by drawing the rows anew."]
        if single:
            notes.append(f"One row has no interval: {', '.join(single)}.")
        if len(protocols) == 1:
            return [*notes, f"Protocol: {protocols[0]}"]
        notes += [f"Protocol of {', '.join(self._labels_under(protocol))}: {protocol}" for protocol in protocols]
        if mixed := self._measured_differently():
            notes.append(
                f"{' and '.join(mixed)} {'was' if len(mixed) == 1 else 'were'} measured under different protocols. "
                "Compare under the same protocol only."
            )
        return notes

    def _labels_under(self, protocol: str) -> list[str]:
        pairs = zip(self.labels, self.scores, strict=True)
        return [label for label, scores in pairs if scores.protocol == protocol]

    def _measured_differently(self) -> list[str]:
        """The measures that stand in one column under more than one protocol."""
        protocols = {h: {scores.protocol for scores in self.scores if h.of(scores)} for h in self.headings}
        return [heading.name for heading, kinds in protocols.items() if len(kinds) > 1]


def tabulate(scores: Sequence[Scores], labels: Sequence[str]) -> Table:
    """Scores under labels; with no labels they are numbered. Raises ValueError for another number of labels."""
    if not scores:
        raise ValueError("There are no scores for the table. Connect SCORES, e.g. from CLIP Score.")
    if not labels:
        return Table(tuple(f"scores {number}" for number in range(1, len(scores) + 1)), tuple(scores))
    if len(labels) != len(scores):
        raise ValueError(
            f"There {_are(len(labels), 'label')} for {len(scores)} SCORES. Write "
            "one label for each, one a line, in the order of the sockets; or none, and they are numbered."
        )
    return Table(tuple(labels), tuple(scores))


def harmless(text: str) -> str:
    """A cell that no spreadsheet runs: with an apostrophe before it where it would be taken for a formula."""
    begins = text.startswith(FORMULA) or text.lstrip().startswith(FORMULA)
    return f"'{text}" if begins and not _is_number(text) else text


def _heading(measure: Measure) -> Heading:
    return Heading(measure.name, measure.unit, measure.higher_is_better)


def _cells(measures: Sequence[Measure | None]) -> list[str]:
    """A column: the mean of each with its interval, and NOTHING where a measure is missing."""
    there = [measure for measure in measures if measure is not None]
    texts = iter(estimated([measure.mean for measure in there], [interval_of(measure) for measure in there]))
    return [NOTHING if measure is None else next(texts) for measure in measures]


def _lines_of(scores: Scores, columns: Sequence[Measure | None]) -> list[tuple[str, str, list[float | str]]]:
    """What each line of the CSV holds, which row it is of, and its values."""
    lines = [
        ("value", row, ["" if measure is None else measure.values[number] for measure in columns])
        for number, row in enumerate(scores.rows)
    ]
    intervals = [None if measure is None else interval_of(measure) for measure in columns]
    lines.append(("mean", "", ["" if measure is None else measure.mean for measure in columns]))
    for end, name in enumerate(("95 % from", "95 % to")):
        lines.append((name, "", ["" if interval is None else interval[end] for interval in intervals]))
    return lines


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    """A table with bars between the columns, which reads in any font, and as Markdown."""
    cells = [[cell.replace("|", "/").replace("\n", " ") for cell in line] for line in lines]
    widths = [max(map(_width, column)) for column in zip(*cells, strict=True)]
    rows = ["| " + " | ".join(_padded(*pair) for pair in zip(line, widths, strict=True)) + " |" for line in cells]
    return "\n".join([rows[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *rows[1:]])


def _padded(text: str, width: int) -> str:
    return text + " " * (width - _width(text))


def _width(text: str) -> int:
    """In columns of a terminal, where a Chinese character takes two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _are(count: int, what: str) -> str:
    return f"is 1 {what}" if count == 1 else f"are {count} {what}s"
