"""A frozen run of ConsiStory's authors, sampled again on the same UNet with the draws that their run made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from semblance.attention.engine.bank import FeatureBank
from semblance.attention.functional.correspondence import nearest_patches, patches_of, smooth
from semblance.attention.functional.word_maps import subject_mask
from semblance.attention.methods.consistory.settings import MaskDropout
from semblance.attention.subjects import maps as subject_maps
from semblance.attention.subjects.maps import Grid, SubjectMaps
from semblance.host.inversion.runs import noise_levels
from semblance.tests.support.studio import record_calls, told_on, wrap
from semblance.tests.tiny_models import sampler_custom

EVERY_IMAGE = slice(None)
FIRST, SECOND = 1, 2
"""The passes of a run, by number."""


@dataclass(frozen=True)
class Replayed(MaskDropout):
    """The draws that the authors' run made."""

    drawn: dict[int, Tensor] = field(default_factory=dict)  # by tokens: bool (steps, images, tokens)

    @classmethod
    def of(cls, case: Mapping[str, Tensor], prefix: str) -> Replayed:
        return cls(drawn={draws.shape[2]: draws for name, draws in case.items() if name.startswith(prefix)})

    def draw(self, step: int, images: int, grid: tuple[int, int]) -> Tensor:
        return self.drawn[grid[0] * grid[1]][step - 1]  # those of a step hide tokens at the next


@dataclass
class Between:
    """What lies between the noise of a story and its pictures."""

    latents: list[Tensor] = field(default_factory=list)
    """What the model was shown at each step of both passes, in the authors' space."""
    masks: dict[tuple[int, int, int], Tensor] = field(default_factory=dict)
    """By pass, last step that is in them, and tokens: bool (images, tokens)."""
    maps: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    """By pass and last step that is in them: (images, subjects, tokens)."""
    features: Tensor = field(default_factory=lambda: torch.empty(0))
    """What the first pass matches its images by: (images, channels, height, width)."""

    @contextmanager
    def watched(self) -> Iterator[None]:
        """While it lasts, what a story finds out is written down here."""
        mask, remember = SubjectMaps.mask, FeatureBank.remember
        looked_at: list[Tensor] = []

        def split(averaged: Tensor, *grid: int) -> Tensor:
            looked_at.append(averaged.flatten(2))
            return subject_mask(averaged, *grid)

        def seen(maps: SubjectMaps, step: int, grid: Grid) -> Tensor | None:
            found = mask(maps, step, grid)
            if found is not None:
                self.masks[maps._pass_number, step - 1, grid[0] * grid[1]] = found
                self.maps[maps._pass_number, step - 1] = looked_at[-1]
            return found

        def kept(bank: FeatureBank, name: Any, value: Any) -> None:
            if name == "features":
                self.features = value
            remember(bank, name, value)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(subject_maps, "subject_mask", split)
            patch.setattr(SubjectMaps, "mask", seen)
            patch.setattr(FeatureBank, "remember", kept)
            yield

    def after(self, step: int, number: int) -> Tensor:
        """The latents after a step that is not the last."""
        steps = len(self.latents) // 2
        return self.latents[step + 1 + (0 if number == FIRST else steps)]

    def matches(self, masks: Tensor, target: int, source: int) -> tuple[Tensor, Tensor]:
        """Where each token of an image finds itself in the masked part of another, and how far that is."""
        side = int(masks.shape[1] ** 0.5)
        patches = patches_of(smooth(self.features), side, side)
        return nearest_patches(patches[target], patches[source], masks[source])


def passes_of(
    model: Any,
    case: Mapping[str, Tensor],
    facts: Mapping[str, Any],
    images: slice = EVERY_IMAGE,
    between: Between | None = None,
) -> list[Tensor]:
    """The final latents of images of the case after each pass of a run, in the authors' space."""
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

    watched, calls = record_calls(wrap(model, WrappersMP.SAMPLER_SAMPLE, keep))
    between = Between() if between is None else between
    with between.watched():
        last = sampler_custom(watched, told_on(model, positive), negative, latent, levels, cfg=facts["guidance_scale"])
    # Where memory is short ComfyUI sends the two sides of a step one after the other.
    steps = [
        call
        for before, call in zip([None, *calls[:-1]], calls, strict=True)
        if not before or before["sigma"] != call["sigma"]
    ]
    between.latents = [call["x"][: len(noise)] / (1 + call["sigma"] ** 2) ** 0.5 for call in steps]
    made[-1] = model.model.process_latent_in(last)
    return [latents / (1 + levels[-1] ** 2) ** 0.5 for latents in made]
