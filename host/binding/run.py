"""One run of a sampler: it opens the banks, knows the noise levels and the conditionings, and leaves nothing behind."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy
from torch import Tensor

from ...attention.engine.bank import FeatureBank
from ...attention.engine.call import AttentionSite
from ...attention.engine.guests import PinnedImages
from ...attention.engine.moment import Moment, RunPlan
from ...attention.engine.patch import AttentionPatch
from .carried import KEY
from .conditionings import STORY, Conditionings, clamped

RUN = f"{KEY}_run"


class NoiseSchedule:
    """Translates a sigma into the share of the schedule passed, as ComfyUI's own start and end percentages do."""

    POINTS = 129

    def __init__(self, model_sampling: Any) -> None:
        percents = numpy.linspace(0.0, 1.0, self.POINTS)
        sigmas = [float(model_sampling.percent_to_sigma(percent)) for percent in percents]
        # ComfyUI answers "more than any" and "less than any" at the two ends.
        sigmas[0], sigmas[-1] = float(model_sampling.sigma_max), float(model_sampling.sigma_min)
        self._percents = percents
        self._falling = -numpy.log(sigmas)
        self._model_sampling = model_sampling
        self._asked: dict[float, float] = {}

    def sigma_at(self, percent: float) -> float:
        """The noise level at a share of the schedule, to ComfyUI's last bit."""
        if percent not in self._asked:
            self._asked[percent] = float(self._model_sampling.percent_to_sigma(percent))
        return self._asked[percent]

    def progress(self, sigma: float) -> float:
        """0 at the highest noise level, 1 at the lowest and below."""
        return 1.0 if sigma <= 0 else float(numpy.interp(-math.log(sigma), self._falling, self._percents))


class Run:
    """One run of a sampler, or a single call of the model that came without one."""

    def __init__(
        self,
        model_sampling: Any,
        ladder: Sequence[float],
        latent: tuple[int, int],
        conditionings: Callable[[], Mapping[str, Any]] = dict,
    ) -> None:
        self.latent = latent
        self._schedule = NoiseSchedule(model_sampling)
        self._ladder = tuple(ladder)
        self._conditionings = conditionings
        self._banks: dict[int, FeatureBank] = {}
        self._sites: dict[int, tuple[AttentionSite, ...]] = {}
        self._progress = tuple(self._schedule.progress(sigma) for sigma in (self._ladder[:-1] or self._ladder))
        self.samplings_left = 0
        """How often the sampler will run again after the sampling in progress."""
        self.conditionings: Conditionings | None = None
        """Those of the call in progress, where the sampler made it."""
        self.pinned: PinnedImages | None = None
        """Images of the call in progress that come out as they are."""

    def bank_of(self, patch: AttentionPatch) -> FeatureBank:
        """What `patch` keeps during this run."""
        return self._banks.setdefault(id(patch), FeatureBank())

    def sites_of(self, unet: Any, find: Callable[[Any], tuple[AttentionSite, ...]]) -> tuple[AttentionSite, ...]:
        """The attention layers of `unet`, found once a run."""
        if id(unet) not in self._sites:
            self._sites[id(unet)] = find(unet)
        return self._sites[id(unet)]

    def moment(self, sigma: float) -> Moment:
        """Where `sigma` stands on the ladder and in the schedule."""
        rising = self._ladder[-1] > self._ladder[0]
        # The slack forgives the rounding of a sampler's own arithmetic.
        reached = sum(point <= sigma * (1 + 1e-6) if rising else point >= sigma * (1 - 1e-6) for point in self._ladder)
        steps = max(len(self._ladder) - 1, 1)
        step = min(max(reached - 1, 0), steps - 1)
        progress = self._schedule.progress(sigma)
        return Moment(sigma, step, steps, progress, self._schedule.sigma_at, self._progress, self.samplings_left)

    def end_if_enough(self, patches: Sequence[tuple[AttentionPatch, FeatureBank]], moment: Moment) -> None:
        """Ends a sampling that is not the last once every patch has what it needs of it."""
        if self.samplings_left and all(patch.is_enough(moment, bank) for patch, bank in patches):
            raise SamplingEnough

    @contextmanager
    def reading(self, conds: Sequence[Sequence[dict[str, Any]] | None], x: Tensor) -> Iterator[None]:
        """Knows the conditionings of one call for `x` as long as it lasts."""
        before, self.conditionings = self.conditionings, self._read(conds, x)
        self.pinned = None
        try:
            yield
        finally:
            self.conditionings, self.pinned = before, None

    def _read(self, conds: Sequence[Sequence[dict[str, Any]] | None], x: Tensor) -> Conditionings:
        """Roles, areas and stories, in the order ComfyUI numbers the conditionings."""
        height, width = x.shape[-2:]
        roles = tuple(self._role(number, group) for number, group in enumerate(conds))
        areas = {
            (number, cond["uuid"]): clamped(cond["area"], height, width)
            for number, group in enumerate(conds)
            for cond in group or ()
            if len(cond.get("area") or ()) == 4 and "uuid" in cond
        }
        stories = {
            (number, cond["uuid"]): cond[STORY]
            for number, group in enumerate(conds)
            for cond in group or ()
            if STORY in cond and "uuid" in cond
        }
        return Conditionings(roles, areas, stories, len(x))

    def _role(self, number: int, group: Sequence[dict[str, Any]] | None) -> str:
        for name, known in self._conditionings().items():
            if known is group:
                return name
        # Context windows hand over copies. (A uuid alone would mislead: the counterpart that ComfyUI makes for an
        # area conditioning keeps the uuid of the other side.)
        uuids = {cond.get("uuid") for cond in group or ()}
        for name, known in self._conditionings().items():
            if uuids and uuids == {cond.get("uuid") for cond in known}:
                return name
        return ("positive", "negative")[number] if number < 2 else f"conditioning {number}"

    def findings(self, patches: Sequence[AttentionPatch], plan: RunPlan) -> dict[str, Tensor]:
        """What the patches found out that outlives the run."""
        return {name: found for patch in patches for name, found in patch.findings(plan, self.bank_of(patch)).items()}

    def close(self) -> None:
        """Forgets everything the run remembered."""
        for bank in self._banks.values():
            bank.clear()
        self._banks.clear()
        self._sites.clear()
        self._conditionings = dict


@contextmanager
def open_run(
    model_sampling: Any,
    sigmas: Tensor,
    latent: tuple[int, int],
    conditionings: Callable[[], Mapping[str, Any]] = dict,
) -> Iterator[Run]:
    """A run that is closed whatever happens inside: success, an error or the user's interrupt."""
    run = Run(model_sampling, sigmas.tolist(), latent, conditionings)
    try:
        yield run
    finally:
        run.close()


class SamplingEnough(Exception):
    """Ends a sampling whose result nobody needs."""
