"""Arithmetic on attention's inputs that leaves its result the same, or weighs its tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def token_shares(shares: Sequence[float], tokens: Sequence[int]) -> Tensor | None:
    """The additive attention mask that makes attention count each picture's tokens `share` times.

    `tokens` says how many tokens each picture has, one after another. Returns (1, 1, 1, all tokens), or None where
    all shares are equal, which softmax does not notice.
    """
    if len(set(shares)) <= 1:
        return None
    logs = torch.tensor([math.log(share) for share in shares], dtype=torch.float32)
    return logs.repeat_interleave(torch.tensor(tokens)).reshape(1, 1, 1, -1)


def joined_contexts(contexts: Sequence[Tensor]) -> Tensor:
    """Contexts (rows, tokens, channels) as rows of one; unequal lengths repeat up to a common one, as ComfyUI's own do.

    Attention does not notice: each token's share of it falls to as many copies as there are, and their sum is the same.
    """
    tokens = math.lcm(*(context.shape[1] for context in contexts))
    return torch.cat([context.repeat(1, tokens // context.shape[1], 1) for context in contexts])
