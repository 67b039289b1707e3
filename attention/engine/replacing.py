"""Methods that put an attention of their own in the place of the model's, at a weight and on an area."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import dropwhile

import torch
from torch import Tensor

from .bank import FeatureBank
from .call import AttentionCall, AttentionSite
from .joint import of_the_sampler, on_every_token
from .moment import Moment, RunPlan
from .patch import Attend, AttentionPatch
from .protocols import AddsToOutput
from .token_masks import mask_per_image
from .weighted import Weighted


class Replaces(Weighted):
    """What such methods have in common; guests keep the model's own attention."""

    def wholly(self, call: AttentionCall) -> bool:
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
        return self.instead_of(call, bank) if self.wholly(call) else call

    def replaced(self, call: AttentionCall, attend: Attend, bank: FeatureBank) -> Tensor:
        """What `attend` gives for a call, with as much of the method's own attention as weight and mask ask for."""
        if self.wholly(call):
            return attend.of(self.instead_of(call, bank))
        made = attend.of(of_the_sampler(self.instead_of(call, bank)))
        return self._mixed(call, attend.of(call), made, bank)


@dataclass(frozen=True, eq=False)
class _WithReplaced(Attend):
    """An attention of which a method replaces a part."""

    attend: Attend
    method: ReplacesByCall
    bank: FeatureBank

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.attend(query, key, value, mask)

    def of(self, call: AttentionCall) -> Tensor:
        return self.method.replaced(call, self.attend, self.bank)


Acting = Sequence[tuple[AttentionPatch, FeatureBank]]


def edited_inputs(call: AttentionCall, patches: Acting) -> AttentionCall:
    """The attention to run in place of `call`, after all patches that act there; see `edited_output`."""
    late = _from_the_first_in_part(call, patches)
    for patch, bank in patches:
        if (patch, bank) not in late:
            call = patch.edit_inputs(call, bank)
    return call


def edited_output(call: AttentionCall, attend: Attend, patches: Acting) -> Tensor:
    """What comes out of an attention, its inputs edited, after all patches that act there; packed.

    Of methods that replace a part of it each mixes what those behind it make with it and without it. So their weights
    are independent, none hides another, and at a weight of 1 they are what they are together. Two of them take four
    attentions, three take eight.
    """
    late, replaced = _from_the_first_in_part(call, patches), attend
    for method, bank in reversed(late):
        replaced = _WithReplaced(replaced, method, bank)
    output = replaced.of(call)
    for patch, bank in sorted(patches, key=lambda one: isinstance(one[0], AddsToOutput)):
        if (patch, bank) not in late:
            output = patch.edit_output(call, output, attend, bank)
    return output


def _from_the_first_in_part(call: AttentionCall, patches: Acting) -> list[tuple[ReplacesByCall, FeatureBank]]:
    """The methods that replace by a call, from the first that does so in part."""
    those = [(patch, bank) for patch, bank in patches if isinstance(patch, ReplacesByCall)]
    return list(dropwhile(lambda one: one[0].wholly(call), those))
