"""IP-Adapter (arXiv:2308.06721): a projector, and key and value weights for every cross-attention of the UNet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, cast

from torch import Tensor, nn

from .checkpoint import AdapterLayout
from .projections import LinearProjection, PatchProjection, Resampler


class ImageAdapter(Protocol):
    """What a method needs of an adapter, on whatever device its weights are."""

    def keys_values(self, number: int, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Image keys and values (..., tokens, channels) of the cross-attention with this number in the file, on any
        device."""
        ...


class WithImageKeys(nn.Module):
    """An adapter's projector, and the keys and values of image tokens in each layer by its number in the file."""

    def __init__(
        self, projector: nn.Module, text_width: int, widths: Mapping[int, int], bias: bool, operations: Any
    ) -> None:
        super().__init__()
        self.image_proj = projector
        names = "to_k_ip", "to_v_ip"
        self.ip_adapter = nn.ModuleDict(
            {
                str(number): nn.ModuleDict({name: operations.Linear(text_width, width, bias=bias) for name in names})
                for number, width in widths.items()
            }
        )

    def tokens(self, embedding: Tensor) -> Tensor:
        """Image tokens (crops, tokens, text_width) of encoded crops (crops, channels) or (crops, patches, channels)."""
        return self.image_proj(embedding)

    def keys_values(self, number: int, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Image keys and values (..., tokens, channels) of the layer with this number in the file."""
        layer = cast(nn.ModuleDict, self.ip_adapter[str(number)])
        return layer["to_k_ip"](tokens), layer["to_v_ip"](tokens)


class IPAdapter(WithImageKeys):
    """The weights of an adapter file. The state dict has the names of the published safetensors."""

    def __init__(self, layout: AdapterLayout, operations: Any = nn) -> None:
        super().__init__(_projector(layout, operations), layout.text_width, layout.widths, False, operations)


def _projector(layout: AdapterLayout, operations: Any) -> nn.Module:
    if layout.variant == "base":
        return LinearProjection(layout.clip_width, layout.text_width, layout.tokens, operations)
    if layout.variant == "full":
        return PatchProjection(layout.clip_width, layout.text_width, operations)
    return Resampler(
        layout.clip_width,
        layout.text_width,
        layout.tokens,
        layout.resampler_width,
        layout.resampler_depth,
        layout.resampler_heads,
        operations,
    )
