"""A frozen run of ConsiStory's authors, sampled again on the same UNet with the draws that their run made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from semblance.attention.methods.consistory.settings import MaskDropout
from semblance.host.inversion.runs import noise_levels
from semblance.tests.support.studio import wrap
from semblance.tests.tiny_models import sampler_custom

EVERY_IMAGE = slice(None)


@dataclass(frozen=True)
class Replayed(MaskDropout):
    """The draws that the authors' run made."""

    drawn: dict[int, Tensor] = field(default_factory=dict)  # by tokens: bool (steps, images, tokens)

    @classmethod
    def of(cls, case: Mapping[str, Tensor], prefix: str) -> Replayed:
        return cls(drawn={draws.shape[2]: draws for name, draws in case.items() if name.startswith(prefix)})

    def draw(self, step: int, images: int, grid: tuple[int, int]) -> Tensor:
        return self.drawn[grid[0] * grid[1]][step - 1]  # those of a step hide tokens at the next


def samplings(
    model: Any, case: Mapping[str, Tensor], facts: Mapping[str, Any], images: slice = EVERY_IMAGE
) -> list[Tensor]:
    """The final latents of images of the case after each sampling of a run, in the authors' space."""
    context, pooled, noise = (case[name][images].float() for name in ("in.prompt_embeds", "in.pooled", "in.latents"))
    height, width = facts["height_width"]
    size = {"width": width, "height": height, "target_width": width, "target_height": height}
    positive = [[context, {"pooled_output": pooled, **size}]]
    negative = [[torch.zeros_like(context), {"pooled_output": torch.zeros_like(pooled), **size}]]
    levels = noise_levels(model, [*facts["timesteps"], 0])
    latent = {"samples": model.model.process_latent_out(noise * (1 + levels[0] ** 2) ** 0.5)}
    made: list[Tensor] = []

    def keep(executor: Any, *arguments: Any) -> Tensor:
        made.append(executor(*arguments))
        return made[-1]

    watched = wrap(model, WrappersMP.SAMPLER_SAMPLE, keep)
    last = sampler_custom(watched, positive, negative, latent, levels, cfg=facts["guidance_scale"])
    made[-1] = model.model.process_latent_in(last)
    return [latents / (1 + levels[-1] ** 2) ** 0.5 for latents in made]
