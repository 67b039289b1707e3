"""What was measured, as one value that nodes pass on: a row for each picture or pair, a column for each measure."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

RESAMPLES = 2000
MOST_DRAWN = 2**21


@dataclass(frozen=True)
class Measure:
    """One column: what was measured, and its value on each row."""

    name: str
    """E.g. "text", "style", "LPIPS"."""
    values: tuple[float, ...]
    higher_is_better: bool
    unit: str = ""

    def interval(self, seed: int = 0) -> tuple[float, float]:
        """What 95 of 100 means of rows drawn anew lie within; the mean twice where there is one row."""
        values = torch.tensor(self.values, dtype=torch.float64)
        generator = torch.Generator().manual_seed(seed)
        together = max(MOST_DRAWN // len(values), 1)  # resamples at a time, so that memory does not grow with the rows
        shapes = [(min(together, RESAMPLES - done), len(values)) for done in range(0, RESAMPLES, together)]
        drawn = (values[torch.randint(len(values), shape, generator=generator)] for shape in shapes)
        means = torch.cat([rows.mean(dim=1) for rows in drawn])
        return float(means.quantile(0.025)), float(means.quantile(0.975))

    @property
    def mean(self) -> float:
        return math.fsum(self.values) / len(self.values)

    def ranking(self) -> list[int]:
        """Row numbers, the best first; of equal ones the earlier first; rows without a number last."""
        sign = -1.0 if self.higher_is_better else 1.0
        # NaN compares with nothing: among the keys it would leave the other rows unsorted.
        missing = [math.isnan(value) for value in self.values]
        return sorted(
            range(len(missing)), key=lambda row: (missing[row], 0 if missing[row] else sign * self.values[row])
        )


@dataclass(frozen=True)
class Scores:
    """Measures of the same rows, in the order in which those were given."""

    rows: tuple[str, ...]
    """What each row is: a prompt, a file's name, or what was compared with what."""
    measures: tuple[Measure, ...]
    protocol: str
    """How it was measured, in one sentence; numbers compare under the same protocol only."""
    pictures: tuple[str, ...] = ()
    """The fingerprint of each row's picture, by which a picture is found again in any order; none for other rows."""
    of_prompts: bool = False
    """Whether each row is the prompt of its picture, and not a name."""

    def __post_init__(self) -> None:
        counts = {len(self.rows), *(len(measure.values) for measure in self.measures)}
        if self.pictures:
            counts.add(len(self.pictures))
        if len(counts) != 1 or not self.rows or not self.measures:
            raise ValueError(f"Scores need the same number of rows in every column, at least one; found {counts}.")

    def __getitem__(self, name: str) -> Measure:
        """The measure called `name`. Raises ValueError that names those there are."""
        for measure in self.measures:
            if measure.name == name:
                return measure
        known = ", ".join(measure.name for measure in self.measures)
        raise ValueError(f"These scores hold no measure '{name}'; they hold: {known}. Choose one of them.")

    def __repr__(self) -> str:
        return f"{len(self.rows)} rows of {', '.join(measure.name for measure in self.measures)}"


def fingerprint(picture: Tensor) -> str:
    """What tells one picture (height, width, channels) in [0, 1] from another, at the 8 bits of a PNG.

    Cut off and not rounded, as ComfyUI saves pictures: one that was saved and loaded again is still the same.
    """
    pixels = (picture.float() * 255).clamp(0, 255).to(torch.uint8).contiguous().cpu()
    return f"{hashlib.sha256(pixels.numpy().tobytes()).hexdigest()} {tuple(pixels.shape)}"
