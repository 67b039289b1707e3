"""The drawn truth that an encoder reads, and that its readout is asked for: numbers, and choices of one among some."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional


class Answers:
    """The truth of pictures; its kinds say how many numbers there are, and of how many each choice is."""

    NUMBERS: ClassVar[int]
    CHOICES: ClassVar[tuple[int, ...]]

    def __init__(self, numbers: Sequence[Tensor], choices: Sequence[Tensor], device: torch.device) -> None:
        self.numbers = torch.cat(list(numbers), dim=1).to(device)
        self.choices = [choice.to(device) for choice in choices]

    def vector(self) -> Tensor:
        """Everything side by side, choices as ones among zeros: (pictures, NUMBERS + the sum of CHOICES)."""
        ones = [functional.one_hot(c, n).float() for c, n in zip(self.choices, self.CHOICES, strict=True)]
        return torch.cat([self.numbers, *ones], dim=1)

    def loss(self, readout: Tensor) -> Tensor:
        numbers, *choices = readout.float().split([self.NUMBERS, *self.CHOICES], dim=1)
        chosen = [functional.cross_entropy(c, true) for c, true in zip(choices, self.choices, strict=True)]
        return 2 * (numbers - self.numbers).pow(2).mean() + 0.2 * torch.stack(chosen).sum()
