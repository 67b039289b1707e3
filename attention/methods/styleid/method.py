"""StyleID (arXiv:2312.09008): a content picture sampled again with the keys and values of a style picture.

Both pictures are inverted to noise. While the content is sampled again, chosen self-attentions of the decoder use the
content's own queries, mixed with those of the moment, and the style's keys and values:

    Q' = gamma * Q_content + (1 - gamma) * Q
    Z = softmax(temperature * Q' K_style^T / sqrt(d)) V_style

Features are not stored: the inverted latents ride along as guests and are looked at again at every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...engine.bank import FeatureBank
from ...engine.call import AttentionCall, AttentionSite
from ...engine.guests import Guest
from ...engine.joint import of_the_sampler
from ...engine.layout import BatchLayout
from ...engine.moment import Moment, RunPlan
from ...engine.patch import Attend
from ...engine.protocols import BringsGuests
from ...engine.sharing import attend_in_groups
from ...references.trajectory import ReferenceTrajectory
from .injection import CONTENT, STYLE, StyleInjection


@dataclass(frozen=True, eq=False, repr=False)
class StyleID(StyleInjection, BringsGuests):
    """StyleID on a UNet: the pictures ride as guests with the text of their inversion."""

    def applies_to(self, site: AttentionSite, moment: Moment) -> bool:
        return site.kind == "self" and self._weight(site, moment) != 0.0

    def guests(self, layout: BatchLayout, moment: Moment, bank: FeatureBank) -> Sequence[Guest]:
        pairs = ((CONTENT, self.content), (STYLE, self.style))
        return [_shown(name, trajectory, layout, moment) for name, trajectory in pairs]

    def edit_inputs(self, call: AttentionCall, bank: FeatureBank) -> AttentionCall:
        if not self.wholly(call):
            return call
        rows = call.layout.host_rows
        query, key, value = self._injected(call, bank)
        return replace(
            call,
            query=torch.cat([query, call.query[rows:]]),
            key=torch.cat([key, call.key[rows:]]),
            value=torch.cat([value, call.value[rows:]]),
        )

    def edit_output(self, call: AttentionCall, output: Tensor, attend: Attend, bank: FeatureBank) -> Tensor:
        if self.wholly(call):
            return output
        query, key, value = self._injected(call, bank)
        if call.shared:
            injected = replace(of_the_sampler(call), query=query, key=key, value=value)
            made = attend_in_groups(
                injected,
                lambda query, key, value, images, mask=None, span=slice(None): attend(query, key, value, mask),
            )
        else:
            made = attend(query, key, value)
        return self._mixed(call, output, made, bank)

    def check(self, plan: RunPlan) -> None:
        for trajectory in (self.content, self.style):
            trajectory.check_channels(plan.channels)
        super().check(plan)

    def _injected(self, call: AttentionCall, bank: FeatureBank) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value for the sampler's rows."""
        content = self._rows_for_host(call, CONTENT, bank)
        style = self._rows_for_host(call, STYLE, bank)
        own = call.query[: call.layout.host_rows]
        query = torch.lerp(own, call.query.index_select(0, content), self.gamma) * self.temperature
        return query, call.key.index_select(0, style), call.value.index_select(0, style)

    def _rows_for_host(self, call: AttentionCall, name: str, bank: FeatureBank) -> Tensor:
        """For each of the sampler's rows, the row of the guest that its image is paired with."""
        layout = call.layout
        seats = layout.guest_rows(self, name)

        def pair() -> Tensor:
            count = seats.stop - seats.start
            image = torch.arange(layout.host_rows, device=call.query.device) % layout.images
            return seats.start + image % count

        return bank.once((name, seats.start, seats.stop, layout.host_rows, layout.images, call.query.device), pair)


def _shown(name: str, trajectory: ReferenceTrajectory, layout: BatchLayout, moment: Moment) -> Guest:
    """The pictures for the images that a call shows, in the order of its rows; the one for all, where there is one."""
    latents = trajectory.at(moment.sigma)
    if layout.window is None or len(latents) == 1:
        return Guest(name, latents, trajectory.context, trajectory.vector)
    shown = list(layout.image_indices)
    context, vector = (
        part if part is None or len(part) == 1 else part[shown] for part in (trajectory.context, trajectory.vector)
    )
    assert context is not None
    return Guest(name, latents[shown], context, vector)
