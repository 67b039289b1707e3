"""Recorded anchors: a subject kept from an earlier run, which new images attend to instead of each other."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...engine.bank import FeatureBank
from ...engine.call import AttentionCall, AttentionSite, SharedTokens
from ...engine.layout import BatchLayout
from ...engine.moment import Moment, RunPlan
from ...engine.sharing import select_rows
from ...engine.token_masks import PIXELS_PER_LATENT
from ...functional.correspondence import near_enough, nearest_patches
from ...subjects.recording import RecordedStates, RecordedSubject, side_of
from ...subjects.words import SubjectWords
from .anchors import StepMasks
from .settings import Injection, Sharing

SAME_LEVEL = 1e-3
"""How far apart noise levels may lie and still count as the same, relative."""

RECORDED_AT_CFG_1 = (
    "The subject was recorded at CFG 1, so nothing is known of its negative side. Set the sampler's CFG to 1, or "
    "record the subject at a CFG above 1."
)


@dataclass(frozen=True, eq=False)
class RecordedAnchors:
    """Every image attends to the recorded anchors and to no other image."""

    subject: RecordedSubject
    copies: bool = True
    """Whether features are copied too, which takes two passes."""

    @property
    def follow_masks(self) -> bool:
        return False

    @property
    def have_features(self) -> bool:
        features = self.subject.features
        return self.copies and features is not None and len(features.patches) > 0

    def label(self, words: SubjectWords, sharing: Sharing) -> str:
        return f"Subject of {self.subject.anchors} recorded anchors in {words}, sharing {sharing.strength:g}"

    def prepare(
        self, sharing: Sharing, masks: StepMasks, layout: BatchLayout, moment: Moment, bank: FeatureBank
    ) -> None:
        states = self._states(moment)
        if not all(side_of(layout, chunk) in states.sides for chunk in range(len(layout.chunks))):
            raise ValueError(RECORDED_AT_CFG_1)
        recorded = {site: states.at(site, moment.step) for site in states.by_site}
        _cache_on_device("recorded states", recorded, layout, moment, bank)

    def prepare_outputs(self, layout: BatchLayout, moment: Moment, bank: FeatureBank) -> None:
        features = self.subject.features
        assert features is not None
        outputs = {site: features.at(site, moment.step) for site in features.outputs}
        _cache_on_device("recorded outputs", outputs, layout, moment, bank)

    def tokens(self, sharing: Sharing, call: AttentionCall, bank: FeatureBank) -> Iterator[SharedTokens]:
        states, name = self._states(call.moment), _cache_key("recorded states", call.moment, call.site)
        if call.project is None or name not in bank:
            return
        recorded = bank.recall(name)
        if recorded.shape[1]:
            sides = [states.sides.index(side_of(call.layout, chunk)) for chunk in range(len(call.layout.chunks))]
            key, value = (select_rows(part, sides, dim=0) for part in call.project(recorded.to(call.key)))
            yield SharedTokens(tuple(range(call.layout.images)), key, value)

    def match(self, sharing: Sharing, image: int, patches: Tensor, subjects: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest recorded patch."""
        assert self.subject.features is not None
        recorded = self.subject.features.patches.to(patches)
        index, distance = nearest_patches(patches[image], recorded, torch.ones_like(recorded[:, 0], dtype=torch.bool))
        return index, near_enough(distance)

    def outputs(self, call: AttentionCall, images: Tensor, bank: FeatureBank) -> Tensor:
        return bank.recall(_cache_key("recorded outputs", call.moment, call.site)).to(images)

    def _states(self, moment: Moment) -> RecordedStates:
        """The recording of the pass in progress."""
        index = int(moment.is_last_pass) if self.copies else self.subject.single_pass
        return self.subject.passes[index]

    def check(self, plan: RunPlan, sharing: Sharing, injection: Injection) -> None:
        recorded = self.subject
        if plan.size != recorded.size:
            (height, width), (rows, columns) = recorded.size, plan.size
            raise ValueError(
                f"The subject was recorded on a latent of {width}x{height}, but this one is {columns}x{rows}. Make the "
                f"picture {width * PIXELS_PER_LATENT}x{height * PIXELS_PER_LATENT}, or record the subject at this size."
            )
        if plan.guided and sharing.strength and "negative" not in recorded.sides:
            raise ValueError(RECORDED_AT_CFG_1)
        _check_noise_levels(recorded.sigmas, tuple(moment.sigma for moment in plan.moments))
        self._check_features(plan, injection)

    def _check_features(self, plan: RunPlan, injection: Injection) -> None:
        features = self.subject.features
        if not self.copies or features is None:
            return
        missing = [m.step for m in plan.moments if injection.window.contains(m) and m.step not in features.steps]
        if missing and features.steps:
            raise ValueError(
                f"The subject holds features to copy of {len(features.steps)} steps, but not of step {missing[0]}, "
                "where they are copied now: an older Semblance recorded it, by steps and not by noise. Record it "
                "again, or set injection to 0."
            )

    def __post_init__(self) -> None:
        if self.copies and self.subject.features is None:
            raise ValueError(
                "The subject holds no features to copy: it was recorded or saved without them. Set injection to 0, or "
                "record and save it with them."
            )


def _cache_on_device(
    what: str, recorded: Mapping[AttentionSite, Tensor], layout: BatchLayout, moment: Moment, bank: FeatureBank
) -> None:
    """Copies what was recorded for a step to the model's device at the first call of the step; drops the step before.

    Inside an attention each of these copies would make the GPU wait.
    """
    step = _cache_key(what, moment)
    bank.forget(lambda name: isinstance(name, tuple) and name[:1] == step[:1] and name[: len(step)] != step)
    for site, tensor in recorded.items():
        bank.once(_cache_key(what, moment, site), lambda tensor=tensor: tensor.to(layout.device))


def _cache_key(what: str, moment: Moment, *site: AttentionSite) -> tuple[Hashable, ...]:
    """The bank's name for something recorded."""
    return what, moment.pass_number, moment.step, *site


def _check_noise_levels(recorded: tuple[float, ...], asked: tuple[float, ...]) -> None:
    """Refuses a run whose noise levels are not those of the recording."""
    alike = len(recorded) == len(asked) and all(
        abs(one - other) <= SAME_LEVEL * one for one, other in zip(recorded, asked, strict=True)
    )
    if not alike:
        raise ValueError(
            f"The subject was recorded in {_levels(recorded)}, but the sampler takes {_levels(asked)}. Give the "
            "sampler the steps, scheduler and denoise of the recording, or record the subject anew. KSampler gives "
            "dpm_2 and uni_pc other noise levels than the rest: where either is one of them, take it for both."
        )


def _levels(sigmas: tuple[float, ...]) -> str:
    middle = sigmas[len(sigmas) // 2]
    return f"{len(sigmas)} steps from sigma {sigmas[0]:.4g} over {middle:.4g} to {sigmas[-1]:.4g}"
