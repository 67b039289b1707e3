"""The colours of tokens, for ComfyUI's previews while a masked transformer samples."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ...attention.functional.masked_tokens import one_hot

MOST_DECODED = 256
"""How many tokens are decoded, from which the colours of the others follow."""
SIDE = 2
"""Each as a picture of so many tokens a side."""


class ColourOfTokens:
    """A colour for each token of a codebook, found out when first asked for."""

    def __init__(self, vae: Any) -> None:
        self._vae = vae

    @cached_property
    def factors(self) -> list[list[float]]:
        """(codebook, 3), from -1 to 1, as ComfyUI's previewers multiply one-hot latents by."""
        codes = self._vae.first_stage_model.quantize.embedding.weight.detach().float().cpu()
        chosen = torch.linspace(0, len(codes) - 1, min(len(codes), MOST_DECODED)).round().long()
        tokens = chosen[:, None, None].expand(-1, SIDE, SIDE)
        seen = self._vae.decode(one_hot(tokens, len(codes))).mean(dim=(1, 2)).float().cpu()[:, :3]
        if len(chosen) < len(codes):
            seen = _with_one(codes) @ torch.linalg.lstsq(_with_one(codes[chosen]), seen).solution
        return (seen.clamp(0, 1) * 2 - 1).tolist()


def _with_one(codes: Tensor) -> Tensor:
    return torch.cat([codes, torch.ones(len(codes), 1)], dim=1)
