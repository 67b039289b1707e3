"""IP-Adapters for Flux: a projector, and key and value weights for its blocks, in InstantX's form and XLabs'."""

from __future__ import annotations

from typing import Any

from torch import nn

from .flux_checkpoint import FluxAdapterLayout
from .ip_adapter import WithImageKeys
from .projections import DeepProjection, LinearProjection


class FluxIPAdapter(WithImageKeys):
    """The weights of an adapter file. The state dict has the names that `flux_checkpoint.named_alike` gives."""

    def __init__(self, layout: FluxAdapterLayout, operations: Any = nn) -> None:
        projector = DeepProjection if layout.form == "InstantX" else LinearProjection
        made = projector(layout.clip_width, layout.text_width, layout.tokens, operations)
        super().__init__(made, layout.text_width, layout.widths, layout.form == "XLabs", operations)
