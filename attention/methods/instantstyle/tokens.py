"""Reference pictures as image tokens, for both sides of guidance."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ...functional.attention import token_weights


@dataclass(frozen=True, eq=False)
class ImageTokens:
    """The reference pictures as an adapter's projector gives them."""

    conditional: tuple[Tensor, ...]  # for each picture (crops * tokens, channels)
    unconditional: tuple[Tensor, ...]  # for each picture, or one for all, (tokens, channels)
    weights: tuple[float, ...]
    """By picture: how many copies of it attention counts or, if it has a mask or an image of its own, its strength
    there."""
    by_image: bool = False
    """Whether each picture is for one image of the batch, in their order; the last one holds for all further images."""

    def both_sides(self, picture: int | None) -> Tensor:
        """Tokens of one picture or, with None, of all in a row, (2, tokens, channels), unconditional side first."""
        pictures = range(len(self.conditional)) if picture is None else (picture,)
        sides = [(self._negative(number), self.conditional[number]) for number in pictures]
        # Attention does not notice that the unconditional tokens repeat, as they do in diffusers.
        unconditional = [negative.repeat(len(tokens) // len(negative), 1) for negative, tokens in sides]
        return torch.stack([torch.cat(unconditional), torch.cat([tokens for _, tokens in sides])])

    def distinct(self) -> list[int]:
        """For each picture the first that is the same on both sides: frames of an animation often share one."""
        sides = [(id(tokens), id(self._negative(number))) for number, tokens in enumerate(self.conditional)]
        return [sides.index(side) for side in sides]

    def _negative(self, picture: int) -> Tensor:
        return self.unconditional[min(picture, len(self.unconditional) - 1)]

    @cached_property
    def weight_mask(self) -> Tensor | None:
        """The additive attention mask (1, 1, 1, tokens) of the pictures' weights, or None if all are equal."""
        # A picture cut into several crops counts as one.
        each = [
            weight * len(self.unconditional[0]) / len(tokens)
            for weight, tokens in zip(self.weights, self.conditional, strict=True)
        ]
        return token_weights(each, [len(tokens) for tokens in self.conditional])
