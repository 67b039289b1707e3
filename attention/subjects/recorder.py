"""Writes a subject down while its anchor images are sampled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..engine.call import AttentionCall, AttentionSite
from ..engine.layout import BatchLayout
from ..engine.moment import Moment
from ..engine.states import equally_wide
from .maps import Grid, grid_of
from .recording import SIDES, RecordedFeatures, RecordedStates, RecordedSubject, Side, side_of


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


def _first_chunks(layout: BatchLayout) -> Iterator[tuple[Side, int]]:
    """The first chunk of each side in a call. Prompts combined with a story's do not count."""
    seen: set[Side] = set()
    for number, chunk in enumerate(layout.chunks):
        side = side_of(layout, number)
        foreign = bool(layout.tags) and chunk.conditional and chunk.tag is None
        if side not in seen and not foreign:
            seen.add(side)
            yield side, number
