"""What later images need of a subject once its anchor images are gone.

The authors of ConsiStory (arXiv:2402.03286) keep the hidden states that enter the anchors' self-attentions, at the
subject's tokens, and not their keys and values. The model projects the states when they are used, so that a LoRA acts
on them too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

from ..engine.call import AttentionSite
from ..engine.layout import BatchLayout

Side = Literal["negative", "positive"]
SIDES: tuple[Side, ...] = ("negative", "positive")


@dataclass(frozen=True, eq=False)
class RecordedStates:
    """The hidden states of one pass: what entered its self-attentions at the subject's tokens, for all anchors."""

    by_site: Mapping[AttentionSite, Tensor]  # (sides, tokens of all steps one after another, channels)
    """The sides are SIDES, or the positive alone if nothing was guided. Twice the channels where keys and values were
    made from different states."""
    counts: Mapping[AttentionSite, tuple[int, ...]]
    """How many of those tokens belong to each step."""

    def __post_init__(self) -> None:
        for site, states in self.by_site.items():
            if states.ndim != 3 or len(states) not in (1, len(SIDES)) or states.shape[1] != sum(self.counts[site]):
                raise ValueError(f"its states for {site} have the wrong shape, {tuple(states.shape)}")

    @property
    def sides(self) -> tuple[Side, ...]:
        return SIDES[-min((len(states) for states in self.by_site.values()), default=1) :]

    @property
    def steps(self) -> int:
        """How many steps the pass had, those without a subject counted."""
        return max((len(counts) for counts in self.counts.values()), default=0)

    def at(self, site: AttentionSite, step: int) -> Tensor:
        """The states of one layer at one step: (sides, tokens, channels).

        No tokens beyond the steps recorded: the first pass of a fast story ends early, that of a story beside it not.
        """
        ends = (0, *accumulate(self.counts[site]))
        if step >= len(self.counts[site]):
            return self.by_site[site][:, :0]
        return self.by_site[site][:, ends[step] : ends[step + 1]]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(self.by_site.values())

    def stored_as(self, dtype: torch.dtype) -> RecordedStates:
        return replace(self, by_site=_cast(self.by_site, dtype))


@dataclass(frozen=True, eq=False)
class RecordedFeatures:
    """What is copied from the anchors: the subject's patches as they are matched, and the outputs taken from them."""

    patches: Tensor  # (patches, channels) of length 1
    outputs: Mapping[AttentionSite, Tensor]  # (steps, patches, channels), before the output projection
    steps: tuple[int, ...]

    def __post_init__(self) -> None:
        expected = (len(self.steps), len(self.patches))
        for site, outputs in self.outputs.items():
            if outputs.ndim != 3 or outputs.shape[:2] != expected:
                raise ValueError(f"its outputs of {site} have the wrong shape, {tuple(outputs.shape)}")

    def at(self, site: AttentionSite, step: int) -> Tensor:
        """The outputs of one layer at one step: (patches, channels)."""
        return self.outputs[site][self.steps.index(step)]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.patches, *self.outputs.values())

    def stored_as(self, dtype: torch.dtype) -> RecordedFeatures:
        return replace(self, patches=self.patches.to(dtype), outputs=_cast(self.outputs, dtype))


@dataclass(frozen=True, eq=False)
class RecordedSubject:
    """All that other images see of a subject, at every step of the run that made its anchors. On the CPU."""

    anchors: int
    size: tuple[int, int]
    """Height and width of the latent."""
    sigmas: tuple[float, ...]
    """The noise level of every step, falling."""
    passes: tuple[RecordedStates, ...]
    features: RecordedFeatures | None = None
    """None if nothing is copied; then one pass is enough."""

    def __post_init__(self) -> None:
        if not self.passes or not any(states.by_site for states in self.passes):
            raise ValueError("it holds no pass")
        if not any(states.steps == len(self.sigmas) for states in self.passes):
            raise ValueError("its passes do not go through all steps")

    def checked(self) -> RecordedSubject:
        """Returns this subject. Raises ValueError if it holds NaN or infinite values."""
        if not all(tensor.isfinite().all() for tensor in self.tensors):
            raise ValueError(
                "The recorded subject holds values that are not numbers (NaN or infinite). Sample the anchors in a "
                "higher precision, or save them in float32."
            )
        return self

    @property
    def sides(self) -> tuple[Side, ...]:
        """The sides known in all passes."""
        return min((states.sides for states in self.passes), key=len)

    @property
    def single_pass(self) -> int:
        """Index of the first complete pass, used when only one pass runs."""
        return next(index for index, states in enumerate(self.passes) if states.steps == len(self.sigmas))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        states = tuple(tensor for recorded in self.passes for tensor in recorded.tensors)
        return states if self.features is None else (*states, *self.features.tensors)

    @property
    def bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors)

    def bytes_as(self, dtype: torch.dtype) -> int:
        """Memory of all that was recorded, if it were of another precision."""
        return sum(tensor.numel() for tensor in self.tensors) * dtype.itemsize

    def without_features(self) -> RecordedSubject:
        """The subject for a single pass, in which nothing is copied: less than half as large."""
        return replace(self, passes=(self.passes[self.single_pass],), features=None)

    def stored_as(self, dtype: torch.dtype) -> RecordedSubject:
        passes = tuple(states.stored_as(dtype) for states in self.passes)
        features = None if self.features is None else self.features.stored_as(dtype)
        return replace(self, passes=passes, features=features)

    def __repr__(self) -> str:
        height, width = self.size
        anchors = f"{self.anchors} anchor{'' if self.anchors == 1 else 's'} of {width}x{height}"
        copied = "with" if self.features is not None else "without"
        return f"{anchors}, {len(self.sigmas)} steps, {copied} features to copy, {self.bytes / 2**20:.1f} MB"


def side_of(layout: BatchLayout, chunk: int) -> Side:
    return "positive" if layout.conditional[chunk] else "negative"


def _cast(by_site: Mapping[AttentionSite, Tensor], dtype: torch.dtype) -> dict[AttentionSite, Tensor]:
    return {site: tensor.to(dtype) for site, tensor in by_site.items()}
