"""What later images need of a subject once its anchor images are gone.

The authors of ConsiStory (arXiv:2402.03286) keep the hidden states that enter the anchors' self-attentions, at the
subject's tokens, and not their keys and values. The model projects the states when they are used, so that a LoRA acts
on them too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

from ..engine.call import AttentionCall, AttentionSite
from ..engine.layout import BatchLayout
from ..engine.moment import Moment
from ..engine.states import equally_wide
from .maps import Grid

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


class SubjectRecorder:
    """Writes down a subject while its anchors are sampled. The caller who starts that run makes it, and reads it later.

    Inside the attentions tensors stay on their device; they leave it between two model calls.
    """

    def __init__(self) -> None:
        self._states: dict[tuple[int, AttentionSite, int, Side], Tensor] = {}
        self._outputs: dict[tuple[AttentionSite, int], Tensor] = {}
        self._sigmas: dict[int, float] = {}
        self._patches: dict[Grid, Tensor] = {}
        self._indices: dict[Grid, tuple[Tensor, ...]] = {}
        self._copied_on: set[Grid] = set()
        self._size = (0, 0)
        self._anchors, self._steps = 0, 0

    def enter(self, layout: BatchLayout, moment: Moment, anchors: int) -> None:
        """Before a model call: the tensors of the call before leave the device."""
        self._settle()
        self._sigmas.setdefault(moment.step, moment.sigma)
        self._size, self._anchors, self._steps = layout.latent_size or self._size, anchors, moment.steps

    def see(self, call: AttentionCall, selected: Sequence[Tensor]) -> None:
        """Keeps the states of a self-attention at the `selected` tokens of each image."""
        if call.states is None or not selected:
            return
        states = torch.unflatten(call.states[: call.layout.host_rows], 0, (-1, call.layout.images))
        for side, chunk in _first_chunks(call.layout):
            name = call.moment.pass_number, call.site, call.moment.step, side
            seen = [states[chunk, a].index_select(0, selected[a]) for a in range(self._anchors)]
            # Samplers may evaluate a step twice; the first time is at the step's own noise level.
            self._states.setdefault(name, torch.cat(seen))

    def match(self, grid: Grid, patches: Tensor, subjects: Tensor) -> None:
        """Keeps the patches that later images are matched to: (images, patches, channels) at `subjects`, bool."""
        indices = tuple(subjects[a].nonzero().squeeze(1) for a in range(self._anchors))
        self._indices[grid] = indices
        self._patches[grid] = torch.cat([patches[a].index_select(0, own) for a, own in enumerate(indices)])

    def copy(self, call: AttentionCall, output: Tensor) -> None:
        """Keeps the output of an attention that later images copy from."""
        rows = dict(_first_chunks(call.layout)).get("positive")
        indices = self._indices.get(grid_of(call))
        if rows is None or indices is None:
            return
        self._copied_on.add(grid_of(call))
        images = output[call.layout.chunk_rows(rows)]
        taken = torch.cat([images[a].index_select(0, own) for a, own in enumerate(indices)])
        self._outputs.setdefault((call.site, call.moment.step), taken)

    def subject(self) -> RecordedSubject:
        """Everything that was written down. Raises ValueError if there is nothing."""
        self._settle()
        if not self._states:
            raise ValueError(
                "Nothing of the subject was seen while its anchors were sampled: sharing is 0, there is a single step, "
                "or no mask was found. Set sharing above 0, take more steps, or name the subject in plainer words."
            )
        steps = tuple(sorted(self._sigmas))
        if len(steps) != self._steps:
            raise ValueError(
                f"The sampler looked at {len(steps)} of its {self._steps} noise levels, so that scenes sampled "
                "otherwise could not follow. Choose one that takes them all, e.g. euler or dpmpp_2m."
            )
        sigmas = tuple(self._sigmas[step] for step in steps)
        passes = tuple(self._packed(number) for number in sorted({number for number, *_ in self._states}))
        return RecordedSubject(self._anchors, self._size, sigmas, passes, self._features()).checked()

    def _packed(self, pass_number: int) -> RecordedStates:
        """The states of one pass, taken out of the recorder so that they are not held twice."""
        mine = [name for name in self._states if name[0] == pass_number]
        sites = list(dict.fromkeys(site for _, site, _, _ in mine))
        # A sampler or a node may leave out the negative at some steps.
        sides: list[Side] = [side for side in SIDES if all((*name[:3], side) in self._states for name in mine)]
        steps = sorted({step for _, _, step, _ in mine})
        by_site: dict[AttentionSite, Tensor] = {}
        counts: dict[AttentionSite, tuple[int, ...]] = {}
        for site in sites:
            seen = {step: self._taken(pass_number, site, step, sides) for step in steps}
            counts[site] = tuple(seen[step].shape[1] if step in seen else 0 for step in range(max(steps) + 1))
            by_site[site] = torch.cat(equally_wide(list(seen.values())), dim=1)
        return RecordedStates(by_site, counts)

    def _taken(self, pass_number: int, site: AttentionSite, step: int, sides: Sequence[Side]) -> Tensor:
        """The states of one layer at one step: (sides, tokens, channels)."""
        return torch.stack(equally_wide([self._states.pop((pass_number, site, step, side)) for side in sides]))

    def _features(self) -> RecordedFeatures | None:
        if not self._outputs:
            return None
        if len(self._copied_on) > 1:
            sizes = " and ".join(f"{width}x{height}" for height, width in sorted(self._copied_on))
            raise ValueError(
                f"Another node changed the size of the features while they were recorded ({sizes}), so later scenes "
                "could not be matched to them. Bypass it (Kohya Deep Shrink is one), or set injection to 0."
            )
        (grid,) = self._copied_on
        steps = tuple(sorted({step for _, step in self._outputs}))
        sites = dict.fromkeys(site for site, _ in self._outputs)
        outputs = {site: torch.stack([self._outputs.pop((site, step)) for step in steps]) for site in sites}
        return RecordedFeatures(self._patches[grid], outputs, steps)

    def _settle(self) -> None:
        self._states = {name: states.cpu() for name, states in self._states.items()}
        self._outputs = {name: output.cpu() for name, output in self._outputs.items()}
        self._patches = {grid: patches.cpu() for grid, patches in self._patches.items()}


def side_of(layout: BatchLayout, chunk: int) -> Side:
    return "positive" if layout.conditional[chunk] else "negative"


def grid_of(call: AttentionCall) -> Grid:
    return call.height, call.width


def _first_chunks(layout: BatchLayout) -> Iterator[tuple[Side, int]]:
    """The first chunk of each side in a call. Prompts combined with a story's do not count."""
    seen: set[Side] = set()
    for number, chunk in enumerate(layout.chunks):
        side = side_of(layout, number)
        foreign = bool(layout.tags) and chunk.conditional and chunk.tag is None
        if side not in seen and not foreign:
            seen.add(side)
            yield side, number


def _cast(by_site: Mapping[AttentionSite, Tensor], dtype: torch.dtype) -> dict[AttentionSite, Tensor]:
    return {site: tensor.to(dtype) for site, tensor in by_site.items()}
