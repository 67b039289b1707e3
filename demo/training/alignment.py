"""A second aim of transformers: a middle block's tokens tell what the picture encoder sees there (arXiv:2410.06940)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .parts import PictureEmbedder
from .pool import Pool, ViewPool

ALIGNMENT = 0.5
"""Weight of this loss."""


class Aligned(nn.Module):
    """A network, and what reads its middle block in training alone."""

    def __init__(self, network: Any, width: int, seen_width: int) -> None:
        super().__init__()
        self.network: Any = network
        self.reader = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, seen_width))

    def weights(self) -> dict[str, Tensor]:
        """The network's alone, as the host names them."""
        return self.network.state_dict()

    def unlike(self, tokens: Tensor, seen: Tensor) -> Tensor:
        """How little a block's `tokens` (rows, tokens, width) tell of what is `seen` there: 0..2."""
        told = self.reader(tokens).float()
        return (1 - functional.cosine_similarity(told, seen.to(told), dim=2)).mean()


def seen_patches(pools: Sequence[Pool | ViewPool], embedder: PictureEmbedder, device: torch.device) -> Tensor:
    """What the picture encoder sees in each patch, (pictures, 64, width) in half precision, standardised."""
    seen = torch.cat([pool.seen(embedder, device) for pool in pools])[:, 1:]
    few = seen[::16].float()
    return ((seen - few.mean(dim=(0, 1))) / few.std(dim=(0, 1))).half()
