"""What a tuning on a masked transformer minimises: StyleDrop's (arXiv:2306.00983), as the public port has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...attention.functional.masked_tokens import mask_for_tuning, masked_cross_entropy, one_hot, tokens_of


@dataclass(frozen=True)
class MaskedTuning:
    """The cross entropy of the tokens that are masked at random, with the smoothing of the labels."""

    smoothing: float = 0.1

    def __call__(
        self,
        model: Any,
        latents: Tensor,
        conditioning: Mapping[str, Any],
        transformer_options: Mapping[str, Any],
        generator: torch.Generator,
    ) -> Tensor:
        """The loss of `model` on one-hot `latents` (rows, codebook, height, width), a scalar with its gradient.

        `conditioning` is what `model.apply_model` takes beside these, a row each: `c_crossattn`, `y` and `micro`.
        Draws come from `generator` and lie where it does, so that they are the same on every device.
        """
        rows, codebook, height, width = latents.shape
        tokens = tokens_of(latents, codebook).flatten(1)
        place = {"generator": generator, "device": generator.device}
        share = torch.rand(rows, **place).to(latents.device)
        order = torch.rand(rows, height * width, **place).to(latents.device)
        shown, masked = mask_for_tuning(tokens, share, order, codebook)
        one = one_hot(shown.reshape(rows, height, width), codebook, latents.dtype)
        level = masked.to(latents.dtype).mean(dim=1)
        options = {**transformer_options, "sigmas": level, "cond_or_uncond": [0]}
        logits = model.apply_model(one, level, transformer_options=options, **conditioning)
        return masked_cross_entropy(logits.flatten(2).mT, tokens, masked, self.smoothing)
