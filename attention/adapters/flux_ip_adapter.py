"""IP-Adapters for Flux: a projector, and key and value weights for its blocks, in InstantX's form and XLabs'."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from .flux_checkpoint import FluxAdapterLayout
from .projections import DeepProjection, LinearProjection


class FluxIPAdapter(nn.Module):
    """The weights of an adapter file. The state dict has the names that `flux_checkpoint.named_alike` gives."""

    def __init__(self, layout: FluxAdapterLayout, operations: Any = nn) -> None:
        super().__init__()
        projector = DeepProjection if layout.form == "InstantX" else LinearProjection
        self.image_proj = projector(layout.clip_width, layout.text_width, layout.tokens, operations)
        has_bias = layout.form == "XLabs"
        self.ip_adapter = nn.ModuleDict(
            {
                str(number): nn.ModuleDict(
                    {
                        name: operations.Linear(layout.text_width, width, bias=has_bias)
                        for name in ("to_k_ip", "to_v_ip")
                    }
                )
                for number, width in layout.widths.items()
            }
        )

    def tokens(self, embedding: Tensor) -> Tensor:
        """Image tokens (crops, tokens, text_width) of encoded crops (crops, channels)."""
        return self.image_proj(embedding)

    def keys_values(self, number: int, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Image keys and values (..., tokens, channels) of the block with this number in the file."""
        layer = cast(nn.ModuleDict, self.ip_adapter[str(number)])
        return layer["to_k_ip"](tokens), layer["to_v_ip"](tokens)
