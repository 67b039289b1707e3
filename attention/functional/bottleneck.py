"""The adapter of StyleDrop (arXiv:2306.00983), after Houlsby et al. (arXiv:1902.00751): down, GELU, up, and added."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def bottleneck(hidden: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """What the adapter adds to `hidden` (..., channels), by `down` (width, channels) and `up` (channels, width)."""
    return functional.linear(functional.gelu(functional.linear(hidden, down)), up)
