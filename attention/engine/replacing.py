"""Methods that put an attention of their own in the place of the model's, at a weight and on an area."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from .bank import FeatureBank
from .call import AttentionCall, AttentionSite
from .joint import of_the_sampler, on_every_token
from .moment import Moment, RunPlan
from .patch import Attend
from .token_masks import mask_per_image
from .weighted import Weighted


class Replaces(Weighted):
    """What such methods have in common; guests keep the model's own attention."""

    def _wholly(self, call: AttentionCall) -> bool:
        """Whether the method replaces plain attention everywhere, so that one attention serves."""
        return self.scope.mask is None and self._weight(call.site, call.moment) == 1.0

    def _acts(self, plan: RunPlan) -> bool:
        """Whether the method acts anywhere in a run."""
        return self.strength != 0.0 and any(self.scope.blocks.values()) and self.scope.window.meets(plan)

    def _mixed(self, call: AttentionCall, output: Tensor, made: Tensor, bank: FeatureBank) -> Tensor:
        """The output with so much of `made` (host rows, tokens, channels) as weight and mask ask for."""
        rows = call.layout.host_rows
        weight: float | Tensor = self._weight(call.site, call.moment)
        if self.scope.mask is not None:
            area = mask_per_image(self.scope.mask, call, bank)
            weight = weight * on_every_token(area.expand(len(call.layout.chunks), call.layout.images, -1, -1), call)
        return torch.cat([torch.lerp(output[:rows], made, weight), output[rows:]])


class ReplacesByCall(Replaces):
    """Those whose attention is another call, with queries, keys or shared tokens of its own."""

    def applies_to(self, site: AttentionSite, moment: Moment) -> bool:
        return site.kind != "cross" and self._weight(site, moment) != 0.0

    @abstractmethod
    def instead_of(self, call: AttentionCall, bank: FeatureBank) -> AttentionCall:
        """The attention in the place of `call`."""

    def edit_inputs(self, call: AttentionCall, bank: FeatureBank) -> AttentionCall:
        return self.instead_of(call, bank) if self._wholly(call) else call

    def edit_output(self, call: AttentionCall, output: Tensor, attend: Attend, bank: FeatureBank) -> Tensor:
        if self._wholly(call):
            return output
        return self._mixed(call, output, attend.of(of_the_sampler(self.instead_of(call, bank))), bank)
