"""StyleDrop (arXiv:2306.00983): a bottleneck tuned on one picture, after every attention of a frozen model.

    Z' = Z + strength * GELU(Z down) up

on conditional rows alone. The paper's adapter stands after the output projection of an attention; here Z is what
enters that projection, where patches of all kinds meet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..engine.bank import FeatureBank
from ..engine.call import AttentionCall, AttentionSite
from ..engine.layout import Chunk
from ..engine.moment import Moment, RunPlan
from ..engine.patch import Attend
from ..engine.protocols import Advises
from ..engine.scope import Scope
from ..engine.token_masks import mask_per_image
from ..engine.weighted import Weighted
from ..functional.bottleneck import bottleneck

BASE_ROLE = "base"
"""The role of a conditional side that guidance compares the tuned one with: it is left as the frozen model has it."""


@dataclass(frozen=True, eq=False)
class StyleDrop(Weighted, Advises):
    """Adds a tuned bottleneck to attentions where the scope says, on the rows of prompts alone.

    Rows of the unconditional side, of the role `base` and of guests stay as they are. A mask in the scope holds for
    all images; as many masks as images give each its own.
    """

    tensors: Mapping[str, Tensor]
    """`<site>.down` (width, channels) and `<site>.up` (channels, width), by `AttentionSite.name`.

    Of any dtype and device; they may require gradients, and then a loss on the model's output reaches them.
    """
    scope: Scope
    strength: float = 1.0

    def applies_to(self, site: AttentionSite, moment: Moment) -> bool:
        return self._weight(site, moment) != 0.0 and f"{site.name}.down" in self.tensors

    def edit_output(self, call: AttentionCall, output: Tensor, attend: Attend, bank: FeatureBank) -> Tensor:
        layout = call.layout
        rows = [output[layout.chunk_rows(number)] for number in range(len(layout.chunks))]
        for number, chunk in enumerate(layout.chunks):
            if is_tuned(chunk):
                rows[number] = self._styled(number, rows[number], call, bank)
        if layout.guests:
            rows.append(output[layout.host_rows :])
        return rows[0] if len(rows) == 1 else torch.cat(rows)

    def advice(self, plan: RunPlan) -> Sequence[str]:
        return self.scope.advice(plan, "StyleDrop") if self.strength else ()

    def __repr__(self) -> str:
        sites = {name.rpartition(".")[0] for name in self.tensors}
        return f"StyleDrop ({len(sites)} layers), strength {self.strength:g}, {self.scope}"

    def _styled(self, number: int, hidden: Tensor, call: AttentionCall, bank: FeatureBank) -> Tensor:
        """The rows of one chunk, (images, tokens, channels), with what the adapter adds to them."""
        added = bottleneck(hidden, *self._weights(call.site, hidden, bank))
        if self.scope.mask is not None:
            added = added * mask_per_image(self.scope.mask, call, bank)[number]
        return torch.add(hidden, added, alpha=self._weight(call.site, call.moment))

    def _weights(self, site: AttentionSite, like: Tensor, bank: FeatureBank) -> tuple[Tensor, Tensor]:
        """Down and up as the call computes, cast and moved once a run."""
        down, up = (self.tensors[f"{site.name}.{part}"] for part in ("down", "up"))
        name = "bottleneck", site, like.device, like.dtype
        return bank.once(name, lambda: (down.to(like), up.to(like)))


def is_tuned(chunk: Chunk) -> bool:
    """Whether an adapter acts on the rows of a chunk."""
    return chunk.conditional and chunk.role != BASE_ROLE
