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

from ..engine.bank import FeatureBank
from ..engine.call import AttentionCall, AttentionSite
from ..engine.guests import Guest
from ..engine.layout import BatchLayout
from ..engine.moment import Moment, RunPlan
from ..engine.patch import Attend, AttentionPatch
from ..engine.protocols import Advises, BringsGuests, NeedsMemory
from ..engine.scope import Scope
from ..engine.token_masks import mask_per_image
from ..functional.inversion import MIDPOINT
from ..references.trajectory import ReferenceTrajectory

CONTENT, STYLE = "content", "style"
RANDOM_SAMPLERS = ("ancestral", "sde", "lcm", "ddpm", "er_sde", "seeds", "sa_solver")
"""Parts of the names of samplers that add noise of their own, which no inverted trajectory holds."""


@dataclass(frozen=True, eq=False)
class StyleID(AttentionPatch, BringsGuests, NeedsMemory, Advises):
    """Puts the style trajectory's keys and values, and the content trajectory's queries, where the scope says.

    Acts on conditional and unconditional rows alike. Either trajectory holds one picture for all images of the batch,
    or one for each.
    """

    content: ReferenceTrajectory
    style: ReferenceTrajectory
    scope: Scope
    gamma: float = 0.75
    """0 keeps the queries of the moment, 1 takes the content's."""
    temperature: float = 1.5
    """Above 1 makes attention sharper."""
    strength: float = 1.0
    """0 is plain attention, 1 the method."""

    def applies_to(self, site: AttentionSite, moment: Moment) -> bool:
        return site.kind == "self" and self._weight(site, moment) != 0.0

    def guests(self, layout: BatchLayout, moment: Moment, bank: FeatureBank) -> Sequence[Guest]:
        pairs = ((CONTENT, self.content), (STYLE, self.style))
        return [_shown(name, trajectory, layout, moment) for name, trajectory in pairs]

    def extra_images(self, plan: RunPlan) -> float:
        at_once = plan.images if plan.window is None else plan.window
        guests = min(self.content.images, at_once) + min(self.style.images, at_once)
        return guests if self._acts(plan) else 0

    def edit_inputs(self, call: AttentionCall, bank: FeatureBank) -> AttentionCall:
        if not self._wholly(call):
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
        if self._wholly(call):
            return output
        rows = call.layout.host_rows
        injected = attend(*self._injected(call, bank))
        weight: float | Tensor = self._weight(call.site, call.moment)
        if self.scope.mask is not None:
            area = mask_per_image(self.scope.mask, call, bank)
            weight = weight * area.expand(len(call.layout.chunks), call.layout.images, -1, -1).flatten(0, 1)
        return torch.cat([torch.lerp(output[:rows], injected, weight), output[rows:]])

    def check(self, plan: RunPlan) -> None:
        if any(word in plan.sampler for word in RANDOM_SAMPLERS):
            raise ValueError(
                f"The sampler {plan.sampler.removeprefix('sample_')} adds noise of its own, which the inverted "
                "pictures do not hold. Choose euler or ddim."
            )
        if plan.adds_noise:
            raise ValueError(
                "The sampler node adds fresh noise, which the inverted pictures do not hold. Sample by SamplerCustom "
                "with the sampler of the StyleID node, or turn add_noise off."
            )
        if MIDPOINT in (self.content.convention, self.style.convention) and not plan.takes_state:
            raise ValueError(
                "On a flow model ComfyUI's own samplers scale an inverted picture to nothing before the first step. "
                "Sample by SamplerCustom with the sampler of the StyleID node."
            )
        if plan.inpaints:
            raise ValueError(
                "The latent carries a noise mask, which would mix fresh noise into an inverted picture. Remove the "
                "mask (Set Latent Noise Mask), and connect a mask to the StyleID node instead."
            )
        if plan.conflicts:
            raise ValueError(
                f"{' and '.join(sorted(plan.conflicts))} on the same model changes what the inverted pictures would "
                "see. Bypass it."
            )
        for name, trajectory in ((CONTENT, self.content), (STYLE, self.style)):
            trajectory.check_channels(plan.channels)
            if trajectory.size != plan.size:
                raise ValueError(
                    f"The {name} trajectory is of {_size(trajectory.size)}, but the sampler works on "
                    f"{_size(plan.size)}. Connect the LATENT of the StyleID node to the sampler."
                )
            if trajectory.images not in (1, plan.images):
                raise ValueError(
                    f"The {name} trajectory holds {trajectory.images} pictures and the batch {plan.images} images. "
                    "Give one picture for all, or one for each image."
                )
            for moment in plan.moments:
                if self.scope.window.weight(moment):
                    trajectory.at(moment.sigma)

    def advice(self, plan: RunPlan) -> Sequence[str]:
        return self.scope.advice(plan, "StyleID") if self.strength else ()

    def __repr__(self) -> str:
        parts = f"gamma {self.gamma:g}, temperature {self.temperature:g}, strength {self.strength:g}"
        return f"StyleID ({self.content.steps} steps, {self.content.convention}), {parts}, {self.scope}"

    def _acts(self, plan: RunPlan) -> bool:
        blocks = self.strength != 0.0 and any(self.scope.blocks.values())
        return blocks and any(self.scope.window.weight(moment) for moment in plan.moments)

    def _weight(self, site: AttentionSite, moment: Moment) -> float:
        return self.strength * self.scope.weight(site, moment)

    def _wholly(self, call: AttentionCall) -> bool:
        """Whether the method replaces plain attention everywhere, so that one attention serves."""
        return self.scope.mask is None and self._weight(call.site, call.moment) == 1.0

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


def _size(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]} latent pixels"
