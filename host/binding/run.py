"""One run of a sampler: it keeps the banks, the noise levels and the conditionings, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import Tensor

from ...attention.engine.bank import FeatureBank
from ...attention.engine.guests import PinnedImages
from ...attention.engine.moment import Moment, RunPlan
from ...attention.engine.patch import AttentionPatch
from ...attention.engine.protocols import Reports, Resumes, SamplesAgain
from ...attention.engine.unexpected import UnexpectedCall
from .attendance import Attendance
from .carried import KEY, Uncopied
from .conditionings import Conditionings, Group
from .conditions import Prompts
from .noise_schedule import NoiseSchedule

RUN = f"{KEY}_run"
Read = TypeVar("Read")


class PassFinished(Exception):
    """Ends a pass before its last step: its result is not needed, and every patch has what it needs of it."""


class Run(Uncopied):
    """One run of a sampler, or a single call of the model that came without a sampler."""

    def __init__(
        self,
        model_sampling: Any,
        ladder: Sequence[float],
        latent_size: tuple[int, int],
        conditionings: Callable[[], Mapping[str, Any]] = dict,
        others: Callable[[], str] = str,
    ) -> None:
        """`ladder` are the run's noise levels, the last one included; `conditionings` gives the guider's by role.

        `others` tells what other nodes put on the model.
        """
        self.latent_size = latent_size
        self.others = others
        self.attendance = Attendance()
        self._schedule = NoiseSchedule(model_sampling)
        self._ladder = tuple(ladder)
        self._conditionings = conditionings
        self._banks: dict[int, FeatureBank] = {}
        self._read: dict[tuple[int, Callable[[Any], Any]], Any] = {}
        self._progress = tuple(self._schedule.exact_progress(sigma) for sigma in self._ladder)
        self.pass_number, self.passes = 1, 1
        self.extra_images = 0.0
        """For how many images beside those of the run the patches need memory."""
        self.continued = False
        self.extra = False
        """Whether the call in progress is a further one on what this step has seen."""
        self._seen: set[Any] | None = None
        """What was looked at in the step in progress; None if it is not known where steps begin."""
        self.conditionings: Conditionings | None = None
        """Those of the call in progress, if the sampler made it."""
        self.pinned: PinnedImages | None = None
        """Known images in the call in progress, which replace what the sampler computes for them."""
        self.models: dict[Any, Any] = {}
        """The host's model around the network by device, each once it is called."""
        self.prompts = Prompts()
        self.shown: Sequence[int] = ()
        """For each image of the call in progress, which of the batch it is."""

    def bank_of(self, patch: AttentionPatch) -> FeatureBank:
        """What `patch` keeps during this run."""
        return self._banks.setdefault(id(patch), FeatureBank())

    def read(self, part: Any, read: Callable[[Any], Read]) -> Read:
        """What is read off a part of the model, such as its attention layers: once a run."""
        if (id(part), read) not in self._read:
            self._read[id(part), read] = read(part)
        return self._read[id(part), read]

    @contextmanager
    def model_call(self) -> Iterator[None]:
        """A call of the model. One that does not come as patches need it is the user's to mend: a ValueError."""
        self.attendance.called = True
        try:
            yield
        except UnexpectedCall as unexpected:
            raise ValueError(unexpected.beside(self.others())) from unexpected

    def moment(self, sigma: float) -> Moment:
        """The step, progress and pass of a model call at `sigma`."""
        rising = self._ladder[-1] > self._ladder[0]
        # The slack forgives the rounding of a sampler's own arithmetic.
        reached = sum(level <= sigma * (1 + 1e-6) if rising else level >= sigma * (1 - 1e-6) for level in self._ladder)
        steps = max(len(self._ladder) - 1, 1)
        return Moment(
            sigma=sigma,
            step=min(max(reached - 1, 0), steps - 1),
            steps=steps,
            progress=self._schedule.progress(sigma),
            sigma_at=self._schedule.sigma_at,
            ladder=self._progress,
            sigmas=self._ladder,
            pass_number=self.pass_number,
            passes=self.passes,
            continued=self.continued,
            extra=self.extra,
        )

    def end_finished_pass(self, patches: Sequence[tuple[AttentionPatch, FeatureBank]], moment: Moment) -> None:
        """Raises PassFinished in a pass before the last, once no patch needs more of it."""
        if moment.is_last_pass:
            return
        if all(patch.pass_is_done(moment, bank) for patch, bank in patches if isinstance(patch, SamplesAgain)):
            raise PassFinished

    @contextmanager
    def reading(self, groups: Sequence[Group], x: Tensor, model_options: Mapping[str, Any]) -> Iterator[None]:
        """Keeps the conditionings of one step for the latents `x` until the block ends."""
        before = self.conditionings
        self.conditionings = now = Conditionings.read(groups, self._conditionings(), x, model_options)
        self.pinned = None
        self.extra = self._seen is not None and bool(now.looked_at) and now.looked_at <= self._seen
        try:
            yield
            if self._seen is not None:
                self._seen |= now.looked_at
        finally:
            self.conditionings, self.pinned, self.extra = before, None, False

    @contextmanager
    def step(self) -> Iterator[None]:
        """One prediction of the sampler's: what is looked at twice in it, is looked at for another node."""
        before, self._seen = self._seen, set()
        try:
            yield
        finally:
            self._seen = before

    def resume(self, patches: Sequence[AttentionPatch], found: Mapping[str, Tensor]) -> None:
        """Shows the patches what an earlier run found."""
        taken = [patch.resume(found, self.bank_of(patch)) for patch in patches if isinstance(patch, Resumes)]
        self.continued = any(taken)

    def findings(self, patches: Sequence[AttentionPatch], plan: RunPlan) -> dict[str, Tensor]:
        """What the patches found out that outlives the run."""
        found: dict[str, Tensor] = {}
        for patch in patches:
            if isinstance(patch, Reports):
                found |= patch.findings(plan, self.bank_of(patch))
        return found

    def close(self) -> None:
        """Forgets everything the run remembered."""
        for bank in self._banks.values():
            bank.clear()
        self._banks.clear()
        self._read.clear()
        self._conditionings, self.others, self.attendance = dict, str, Attendance()
        self.models.clear()
        self.prompts.clear()


@contextmanager
def open_run(
    model_sampling: Any,
    sigmas: Tensor,
    latent_size: tuple[int, int],
    conditionings: Callable[[], Mapping[str, Any]] = dict,
    others: Callable[[], str] = str,
) -> Iterator[Run]:
    """A run that is closed after success, an error and the user's interrupt alike."""
    run = Run(model_sampling, sigmas.tolist(), latent_size, conditionings, others)
    try:
        yield run
    finally:
        run.close()
