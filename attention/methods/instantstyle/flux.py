"""IP-Adapters on Flux, in the two published forms. Both attend to image tokens c with the model's own queries:

    s * Attention(Q, norm(c K'), c V')      InstantX: added to what attention gives, before its output projection
    s * Attention(Q, c K' + b, c V' + b)   XLabs: added to the picture's tokens after a double block

Q is taken after its norm and before its rotation: image tokens have no place in the picture. InstantX's acts on the
picture's tokens in double blocks and on text and picture alike in single blocks; its norm divides each head of a key by
its root mean square, and has no weights. Which blocks carry style is unknown.

InstantX's own attention processor leaves the values as they are; ComfyUI-IPAdapter-Flux divides them too, so that its
weight is another measure than `strength`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...engine.bank import FeatureBank
from ...engine.call import AttentionCall, AttentionSite
from ...engine.patch import Attend
from ...engine.protocols import AddsToOutput, EditsStreams
from ...engine.scope import ImageMask
from ...functional.rotation import normalised_heads, rotated_back
from .method import InstantStyle


class FluxStyle(InstantStyle, AddsToOutput):
    """What both forms share."""

    def _found(self, call: AttentionCall, attend: Attend, bank: FeatureBank) -> Tensor:
        """What the asking tokens find in the pictures, (host rows, tokens, channels), at the weight of now."""
        rows, tokens = slice(0, call.layout.host_rows), self._asking(call)
        query = (call.query if call.model_query is None else call.model_query)[rows, :, tokens]
        if call.rotation is not None:
            every = call.rotation if len(call.rotation) == 1 else call.rotation[rows]
            query = rotated_back(query, every[:, :, tokens])
        found = self._image_attention(call, query.transpose(1, 2).flatten(2), ByHead(attend, call.heads), bank)
        return found * self._weight(call.site, call.moment) if self.scaling == "V only" else found

    def _asking(self, call: AttentionCall) -> slice:
        """The tokens whose queries look at the pictures."""
        return call.image

    def _masks(self, mask: ImageMask, call: AttentionCall, bank: FeatureBank) -> Tensor:
        """As on a UNet; text has no place, so it takes the mean of the mask."""
        masks = super()._masks(mask, call, bank)
        text = call.image.start - self._asking(call).start
        return torch.cat([masks.mean(dim=-2, keepdim=True).expand(-1, -1, -1, text, -1), masks], dim=-2)


@dataclass(frozen=True, eq=False)
class ByHead(Attend):
    """Attention that is given packed heads, where the model's own takes them apart."""

    attend: Attend
    heads: int

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.attend(self._apart(query), self._apart(key), self._apart(value), mask)

    def of(self, call: AttentionCall) -> Tensor:
        return self.attend.of(call)

    def _apart(self, packed: Tensor) -> Tensor:
        """(rows, tokens, heads * head_dim) -> (rows, heads, tokens, head_dim)"""
        return torch.unflatten(packed, -1, (self.heads, -1)).transpose(1, 2)


class InstantXStyle(FluxStyle):
    """InstantX's form (huggingface.co/InstantX/FLUX.1-dev-IP-Adapter)."""

    def edit_output(self, call: AttentionCall, output: Tensor, attend: Attend, bank: FeatureBank) -> Tensor:
        styled = output.clone()
        styled[: call.layout.host_rows, self._asking(call)] += self._found(call, attend, bank)
        return styled

    def _asking(self, call: AttentionCall) -> slice:
        return call.image if call.site.part == "double" else slice(0, call.image.stop)

    def _keys_for(self, call: AttentionCall) -> Sequence[tuple[Tensor, Tensor]]:
        return [(normalised_heads(key, call.heads), value) for key, value in super()._keys_for(call)]


class XLabsStyle(FluxStyle, EditsStreams):
    """XLabs' form (huggingface.co/XLabs-AI/flux-ip-adapter), as diffusers has it too."""

    def edit_output(self, call: AttentionCall, output: Tensor, attend: Attend, bank: FeatureBank) -> Tensor:
        bank.remember(_name(call.site, output), self._found(call, attend, bank))
        return output

    def edit_stream(self, site: AttentionSite, picture: Tensor, bank: FeatureBank) -> Tensor:
        name = _name(site, picture)
        if name not in bank:  # another node ran the block without its attention
            return picture
        found = bank.recall(name)
        bank.forget(lambda kept: kept == name)
        styled = picture.clone()
        styled[: len(found), : found.shape[1]] += found
        return styled


def _name(site: AttentionSite, like: Tensor) -> tuple[str, AttentionSite, torch.device]:
    """Of what an attention found, until its block is done. Each device has a call of its own."""
    return "found", site, like.device
