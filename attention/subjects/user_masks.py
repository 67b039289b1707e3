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
    """Masks of the user's for the subjects, in place of those found or as their limit."""

    mask: ImageMask
    limits: bool = False

    def laid(self, size: tuple[int, int], grid: Grid) -> Tensor:
        """The masks on the tokens of a latent of `size`: bool (masks, tokens)."""
        height, width = (side * PIXELS_PER_LATENT for side in size)
        return mask_on_grid(fit_mask(self.mask.values, height, width, feather=True), *grid) > 0.5

    def joined(self, laid: Tensor, found: Tensor | None, images: int) -> Tensor | None:
        """The mask to use, bool (images, tokens), where these were laid and `found` was found; on its device."""
        if found is None:
            return None if self.limits else laid.expand(images, -1)
        # ComfyUI keeps masks on the CPU, and the model runs elsewhere.
        laid = laid.to(found.device).expand(images, -1)
        return found & laid if self.limits else laid
