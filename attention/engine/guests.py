"""Latents that a patch brings into a model call: extra rows, and images of the batch that are known already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Guest:
    """Latents that pass through the UNet as extra rows, at the same noise level as the sampler's own."""

    name: str
    latent: Tensor  # (rows, channels, height, width), scaled as the UNet sees it
    context: Tensor  # (rows or 1, text_tokens, channels)
    vector: Tensor | None = None  # (rows or 1, channels), SDXL's size and pooled-text vector

    @property
    def rows(self) -> int:
        return self.latent.shape[0]


@dataclass(frozen=True, eq=False)
class ShownPicture:
    """A picture that the model looks at in every call, noised to the call's own level, once for each chunk.

    It rides as guest rows where it fits beside the sampler's; a picture of another size, or with text of another
    length, goes through the model before the call.
    """

    name: str
    clean: Tensor  # (1, channels, [frames,] height, width), free of noise, scaled as the model's latents are
    noise: Tensor  # the same shape
    prompt: object | None = None
    """The host's conditioning for it beside conditional chunks; None for each chunk's own."""
    text_width: int | None = None
    """Channels of the text of its prompt."""


@dataclass(frozen=True, eq=False)
class InvertedPicture:
    """A picture that the model looks at in one call, in the state of its inversion there, with each chunk's text."""

    name: str
    state: Tensor  # (1, channels, height, width), with the noise of the call, scaled as the network's inputs


@dataclass(frozen=True, eq=False)
class PinnedImages:
    """Known images at the start of the batch. They replace whatever the sampler computes for them."""

    latents: Tensor  # (images, channels, height, width), as the UNet takes them at this noise level
    clean: Tensor  # (images, channels, height, width), free of noise

    def into_noisy(self, x: Tensor, shown: Sequence[int]) -> Tensor:
        """The rows of a model call (chunks * images, ...) with these images in place of the sampler's.

        `shown` says for each row of a chunk which image of the batch it is.
        """
        return self._in(torch.unflatten(x, 0, (-1, len(shown))), self.latents, shown).flatten(0, 1)

    def into_denoised(self, denoised: Tensor, shown: Sequence[int]) -> Tensor:
        """The model's denoised images (images, ...) with these in place of its own."""
        return self._in(denoised[None], self.clean, shown)[0]

    def _in(self, chunks: Tensor, images: Tensor, shown: Sequence[int]) -> Tensor:
        own = images.to(chunks).expand(len(chunks), -1, -1, -1, -1)
        rows = (own[:, image] if image < len(images) else chunks[:, row] for row, image in enumerate(shown))
        return torch.stack([*rows], dim=1)


def cannot_follow_a_crop(names: Sequence[str]) -> str:
    """Why guests of these names refuse a run with a conditioning for a part of the picture, and what to do."""
    return (
        f"An area conditioning shows the model a crop of the picture, where the reference latents ({', '.join(names)}) "
        "cannot follow. Remove Conditioning (Set Area), or use a conditioning mask instead."
    )
