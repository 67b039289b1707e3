"""Masks that a user draws for the subjects of a story."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..engine.scope import ImageMask
from ..engine.token_masks import PIXELS_PER_LATENT
from ..functional.masks import fit_mask, mask_on_grid
from .maps import Grid


@dataclass(frozen=True, eq=False)
class UserMasks:
    """A user's masks for the subjects: they replace the masks that attention finds, or limit them."""

    mask: ImageMask
    limits: bool = False
    """Whether they limit the masks found, instead of replacing them."""

    def on_grid(self, size: tuple[int, int], grid: Grid) -> Tensor:
        """The masks on the tokens of a latent of `size` (height, width): bool (masks, tokens)."""
        height, width = (side * PIXELS_PER_LATENT for side in size)
        return mask_on_grid(fit_mask(self.mask.values, height, width, feather=True), *grid) > 0.5

    def combined(self, drawn: Tensor, found: Tensor | None, images: int) -> Tensor | None:
        """The mask to use, bool (images, tokens), on the device of `found` if anything was; `drawn` is of `on_grid`."""
        if found is None:
            return None if self.limits else drawn.expand(images, -1)
        drawn = drawn.to(found.device).expand(images, -1)
        return found & drawn if self.limits else drawn
