"""Where the subjects stand in each image: the masks found by attention, and those that the user drew."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..engine.bank import FeatureBank
from .maps import Grid, SubjectMaps
from .user_masks import UserMasks
from .words import SubjectWords


@dataclass(frozen=True, eq=False)
class SubjectMasks:
    """The masks of a story's subjects during one run."""

    words: SubjectWords
    drawn: UserMasks | None = None

    def maps(self, bank: FeatureBank, pass_number: int) -> SubjectMaps:
        """The attention maps of one pass, which its masks are made of."""
        return SubjectMaps(self.words, bank, pass_number)

    def before(
        self,
        step: int,
        pass_number: int,
        size: tuple[int, int],
        images: int,
        device: torch.device | None,
        bank: FeatureBank,
        grid: Grid,
    ) -> Tensor | None:
        """The subjects' mask before a step, bool (images, tokens of `grid`); None if nothing is known yet.

        `size` is the latent's height and width, `device` where the model runs.
        """
        found = self.maps(bank, pass_number).mask(step, grid)
        drawn = self.drawn
        if drawn is None:
            return found
        # ComfyUI keeps masks on the CPU, and what is chosen by them indexes tensors of the model's device.
        on_grid = bank.once(("user masks", grid), lambda: drawn.on_grid(size, grid).to(device or "cpu"))
        return drawn.combined(on_grid, found, images)
