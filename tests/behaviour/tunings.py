"""What tests of StyleDrop on the demo models measure, once each."""

from __future__ import annotations

from functools import cache

from semblance.demo.metrics import Measures
from semblance.demo.probe import style_gained
from semblance.demo.styledrop import ROUND_SCALE, Adapters, Tuning, with_adapters


class Results:
    """A tuning's settings over the first references of the demo."""

    def __init__(self, tuning: Tuning, references: int) -> None:
        adapters = Adapters.over(references, tuning)
        self.study, self.plain = adapters.study, adapters.plain()
        self.first = cache(lambda scale: with_adapters(adapters, scale)[1])
        self.second = cache(lambda: with_adapters(adapters, ROUND_SCALE, second=True)[1])

    def gained(self, found: Measures) -> float:
        return style_gained(found, self.plain)
