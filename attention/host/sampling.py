"""The run of a sampler: it opens the banks, knows the ladder and the conditionings, and leaves nothing behind."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import comfy.sampler_helpers
import numpy
from torch import Tensor

from ..bank import FeatureBank
from ..call import Area, AttentionSite, Chunk, Moment, RunPlan
from ..patch import AttentionPatch
from ..reference import PinnedImages
from .carried import KEY, carried_patches
from .results import with_findings

RUN = f"{KEY}_run"
STORY = f"{KEY}_story"
"""Under which name an entry of a conditioning says of which story it is."""
TOKEN_MERGERS = {"hypertile": "HyperTile", "tomesd": "ToMe"}
"""By a part of the module that the node's patch comes from."""


@dataclass(frozen=True)
class Conditionings:
    """What only the guider's call tells: roles by number, areas and stories by number and uuid, how many images."""

    roles: tuple[str, ...]
    areas: Mapping[tuple[int, Any], Area]
    stories: Mapping[tuple[int, Any], str]
    images: int
    """Images of the latent batch, which ComfyUI never splits."""

    @property
    def told(self) -> frozenset[str]:
        """The stories on conditional sides, whether or not the model is shown them in one call."""
        return frozenset(story for (number, _), story in self.stories.items() if Chunk(self.roles[number]).conditional)


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
            (number, cond["uuid"]): _clamped(cond["area"], height, width)
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


def outer_sample(
    executor: Any,
    noise: Tensor,
    latent_image: Tensor,
    sampler: Any,
    sigmas: Tensor,
    denoise_mask: Tensor | None = None,
    callback: Callable[..., None] | None = None,
    *rest: Any,
    **named: Any,
) -> Tensor:
    """OUTER_SAMPLE wrapper: the run lasts exactly as long as the sampler, which runs as often as the patches ask."""
    guider = executor.class_obj
    model_sampling = guider.model_patcher.get_model_object("model_sampling")
    options = guider.model_options["transformer_options"]
    height, width = noise.shape[-2:]
    with open_run(model_sampling, sigmas, (height, width), lambda: guider.conds) as run:
        plan = plan_of(guider, run, sampler, sigmas, noise, inpaints=denoise_mask is not None)
        patches = carried_patches(options)
        samplings = require(patches, plan)
        options[RUN] = run
        conds = guider.conds
        try:
            for number in range(samplings):
                run.samplings_left = samplings - 1 - number
                guider.conds = {name: [dict(cond) for cond in group] for name, group in conds.items()}
                progress = _progress(callback, number, samplings)
                with ended_early(guider) if run.samplings_left else nullcontext():
                    made = executor(noise, latent_image, sampler, sigmas, denoise_mask, progress, *rest, **named)
            return with_findings(made, run.findings(patches, plan))
        finally:
            options.pop(RUN, None)


class SamplingEnough(Exception):
    """Ends a sampling whose result nobody needs."""


@contextmanager
def ended_early(guider: Any) -> Iterator[None]:
    """Lets a sampling end by SamplingEnough, with the tidying that ComfyUI does after a whole one."""
    try:
        yield
    except SamplingEnough:
        comfy.sampler_helpers.cleanup_models(guider.conds, guider.loaded_models)


def _progress(callback: Callable[..., None] | None, number: int, samplings: int) -> Callable[..., None] | None:
    """The callback of one sampling out of several, whose steps count on."""
    if callback is None or samplings == 1:
        return callback

    def counted(step: int, denoised: Tensor, x: Tensor, steps: int) -> None:
        callback(number * steps + step, denoised, x, samplings * steps)

    return counted


def plan_of(guider: Any, run: Run, sampler: Any, sigmas: Tensor, noise: Tensor, inpaints: bool) -> RunPlan:
    """What is known of a run before its first step."""
    height, width = noise.shape[-2:]
    name = getattr(getattr(sampler, "sampler_function", sampler), "__name__", type(sampler).__name__)
    moments = tuple(run.moment(sigma) for sigma in sigmas.tolist()[:-1])
    others = frozenset(neighbours(guider.model_options))
    devices = 1 + len(guider.model_patcher.get_additional_models_with_key("multigpu"))
    cropped = any(_is_for_an_area(cond) for group in guider.conds.values() for cond in group)
    channels = getattr(guider.model_patcher.model.diffusion_model, "in_channels", noise.shape[1])
    return RunPlan(
        name, moments, len(noise), (height, width), inpaints, others, devices, guides(guider), cropped, channels
    )


def guides(guider: Any) -> bool:
    """Whether a guider has a negative side and, as ComfyUI's own tells by its CFG, asks the model for it."""
    return bool(guider.conds.get("negative")) and not math.isclose(getattr(guider, "cfg", 1.0), 1.0)


def _is_for_an_area(cond: Mapping[str, Any]) -> bool:
    return cond.get("area") is not None or ("mask" in cond and bool(cond.get("set_area_to_bounds")))


def require(patches: Sequence[AttentionPatch], plan: RunPlan) -> int:
    """Lets every patch refuse the run before its first step; returns how often the sampler shall run."""
    for patch in patches:
        patch.require(plan)
    return max((patch.samplings(plan) for patch in patches), default=1)


def neighbours(model_options: Mapping[str, Any]) -> list[str]:
    """Known nodes on the same model that change the tokens the UNet sees, or skip its calls."""
    options = model_options["transformer_options"]
    found = ["EasyCache"] if "easycache" in options else []  # LazyCache leaves the same mark
    inputs = options.get("patches", {}).get("attn1_patch", ())
    makers = {getattr(patch, "__module__", "") + "." + getattr(patch, "__qualname__", "") for patch in inputs}
    return found + [name for part, name in TOKEN_MERGERS.items() if any(part in maker for maker in makers)]


def apply_model(
    executor: Any,
    x: Tensor,
    t: Tensor,
    c_concat: Tensor | None,
    c_crossattn: Tensor | None,
    control: Any,
    transformer_options: dict[str, Any],
    **named: Any,
) -> Tensor:
    """APPLY_MODEL wrapper: a model called without a sampler gets a run as long as the call."""
    # Packs that call the model themselves, during a run or without one, do not name the noise level.
    options = {"sigmas": t, **transformer_options}
    if RUN in options:
        return executor(x, t, c_concat, c_crossattn, control, options, **named)
    height, width = x.shape[-2:]
    with open_run(executor.class_obj.model_sampling, t[:1], (height, width)) as run:
        return executor(x, t, c_concat, c_crossattn, control, {**options, RUN: run}, **named)


def calc_cond_batch(
    executor: Any, model: Any, conds: Any, x_in: Tensor, timestep: Tensor, model_options: dict[str, Any]
) -> Any:
    """CALC_COND_BATCH wrapper: the only place where the conditionings' roles and areas can be seen."""
    run: Run | None = model_options.get("transformer_options", {}).get(RUN)
    if run is None:
        return executor(model, conds, x_in, timestep, model_options)
    # Known to the run, not written into a copy of the options, where what others note for later calls would be lost.
    with run.reading(conds, x_in):
        found = executor(model, conds, x_in, timestep, model_options)
        return found if run.pinned is None else [run.pinned.found_in(denoised) for denoised in found]


def _clamped(area: Sequence[int], height: int, width: int) -> Area:
    rows, columns, top, left = area
    return min(height - top, rows), min(width - left, columns), top, left
