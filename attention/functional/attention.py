"""Inputs of attention: masks that weigh tokens, and contexts of unequal length as one batch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def token_weights(weights: Sequence[float], tokens: Sequence[int]) -> Tensor | None:
    """The additive attention mask that counts the tokens of picture i `weights[i]` times.

    Weights are positive. `tokens[i]` is the number of tokens of picture i; pictures follow one another. Returns
    (1, 1, 1, sum of tokens) float32, or None if all weights are equal: softmax is unchanged by a common factor.
    """
    if len(set(weights)) <= 1:
        return None
    logs = torch.tensor([math.log(weight) for weight in weights], dtype=torch.float32)
    return logs.repeat_interleave(torch.tensor(tokens)).reshape(1, 1, 1, -1)


def joined_contexts(contexts: Sequence[Tensor]) -> Tensor:
    """Contexts (rows, tokens, channels) as one batch; each is repeated up to their least common length, as in ComfyUI.

    The result of attention is unchanged: n copies of a token get 1/n of its attention each.
    """
    tokens = math.lcm(*(context.shape[1] for context in contexts))
    return torch.cat([context.repeat(1, tokens // context.shape[1], 1) for context in contexts])
