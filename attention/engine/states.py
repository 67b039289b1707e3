"""What the keys and values of an attention are projected from, as one tensor.

They are the same hidden states unless another node gives the two different ones, as a hypernetwork does. Then the
tensor holds both along its channels: those of the keys, then those of the values.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def joined_states(key_states: Tensor, value_states: Tensor) -> Tensor:
    """The states (rows, tokens, channels), or (rows, tokens, 2 * channels) where the two differ."""
    return key_states if value_states is key_states else torch.cat([key_states, value_states], dim=-1)


def split_states(states: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """The states of keys and of values, each (..., channels)."""
    return (states, states) if states.shape[-1] == channels else (states[..., :channels], states[..., channels:])


def equally_wide(states: Sequence[Tensor]) -> list[Tensor]:
    """States of several steps, all with both where any has: a node may tell the two apart at some steps only."""
    widest = max(each.shape[-1] for each in states)
    return [each if each.shape[-1] == widest else torch.cat([each, each], dim=-1) for each in states]
