"""How an adapter is tuned: everything a tuning depends on besides the model, the pictures and where it starts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ...attention.adapters.style_adapter import FORMS, AdapterForm

BETAS = (0.9, 0.99)
"""Of AdamW."""
RATES: Mapping[AdapterForm, float] = {"bottleneck": 1e-3, "lora": 5e-4}
"""The learning rate of each form where none is named."""


@dataclass(frozen=True)
class TuningRecipe:
    """How an adapter is tuned. The same recipe on the same model and pictures gives the same adapter."""

    blocks: tuple[str, ...]
    """The blocks whose attention layers get a module each, e.g. `output.1`."""
    form: AdapterForm = "bottleneck"
    width: int = 32
    """Channels between down and up."""
    steps: int = 300
    """How many steps are taken, beside those an adapter has behind it already."""
    learning_rate: float = 0.0
    """0 stands for the form's own, in RATES."""
    batch: int = 1
    """Pictures looked at in a step, each at a noise level of its own."""
    seed: int = 0
    flips: bool = True
    """Whether half of the time a picture's mirror image is looked at, where there is one."""
    weight_decay: float = 0.0
    gradient_checkpointing: bool = True
    """Whether activations are computed a second time rather than kept: a third slower, in a fraction of the memory."""

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ValueError(f"There is no form called '{self.form}'. The forms are: {', '.join(FORMS)}.")
        if not self.blocks:
            raise ValueError("No block is chosen, so there is nothing to tune. Choose a preset or name a block.")
        for name, least in (("width", 1), ("steps", 1), ("batch", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"The {name} is {getattr(self, name)}; expected {least} or more.")
        for name in ("learning_rate", "weight_decay"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                spoken = name.replace("_", " ")
                raise ValueError(f"The {spoken} is {getattr(self, name)}; expected a number from 0 up, such as 0.001.")

    @property
    def rate(self) -> float:
        """The learning rate that is used."""
        return self.learning_rate or RATES[self.form]

    def settings(self) -> dict[str, Any]:
        """The recipe as JSON holds it, for the adapter's file."""
        return {**asdict(self), "blocks": list(self.blocks), "learning_rate": self.rate}
