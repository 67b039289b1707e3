"""A recorded subject kept in new images (ConsiStory, arXiv:2402.03286)."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...engine.bank import FeatureBank
from ...engine.call import AttentionCall, AttentionSite, SharedTokens
from ...engine.layout import BatchLayout
from ...engine.moment import Moment, RunPlan
from ...engine.sharing import taken
from ...engine.token_masks import PIXELS_PER_LATENT
from ...functional.correspondence import near_enough, nearest_patches
from ...subjects.recording import RecordedStates, RecordedSubject, side_of
from .method import ConsiStory

SAME_LEVEL = 1e-3
"""How far noise levels that count as the same lie apart, relative."""
RECORDED_AT_CFG_1 = (
    "The subject was recorded at CFG 1, so nothing is known of its negative side. Set the sampler's CFG to 1, or "
    "record the subject at a CFG above 1."
)


@dataclass(frozen=True, eq=False)
class AppliedSubject(ConsiStory):
    """Keeps a recorded subject in new images, each of which looks at the recorded anchors and at no other image."""

    subject: RecordedSubject = field(kw_only=True)

    def __post_init__(self) -> None:
        if self.injection.strength and self.subject.features is None:
            raise ValueError(
                "The subject holds no features to copy: it was recorded or saved without them. Set injection to 0, or "
                "record and save it with them."
            )

    def require(self, plan: RunPlan) -> None:
        self._require_whole_story(plan)
        recorded = self.subject
        if plan.size != recorded.size:
            (height, width), (rows, columns) = recorded.size, plan.size
            raise ValueError(
                f"The subject was recorded on a latent of {width}x{height}, but this one is {columns}x{rows}. Make the "
                f"picture {width * PIXELS_PER_LATENT}x{height * PIXELS_PER_LATENT}, or record the subject at this size."
            )
        if plan.guided and self.sharing.strength and "negative" not in recorded.sides:
            raise ValueError(RECORDED_AT_CFG_1)
        _require_ladder(recorded.sigmas, tuple(moment.sigma for moment in plan.moments))

    def __repr__(self) -> str:
        parts = [
            f"{self.subject.anchors} recorded anchors in {self.words}, sharing {self.sharing.strength:g}",
            f"query blend {self.blend.strength:g}, injection {self.injection.strength:g}",
        ]
        return f"Subject of {', '.join(parts)}"

    @property
    def _last_with_maps(self) -> int:
        return 1

    def _needs_maps(self, moment: Moment) -> bool:
        """Masks of these images are only needed to know where features are copied to."""
        return self.injection.strength != 0.0 and moment.samplings_left > 0

    def begin(self, layout: BatchLayout, moment: Moment, bank: FeatureBank) -> None:
        super().begin(layout, moment, bank)
        features = self.subject.features
        if features is not None and self._injects(moment) and "matches" in bank:
            outputs = {site: features.at(site, moment.step) for site in features.outputs}
            _bring("recorded outputs", outputs, layout, moment, bank)

    def _prepare_sharing(self, layout: BatchLayout, moment: Moment, bank: FeatureBank) -> None:
        states = self._states(moment)
        if not all(side_of(layout, chunk) in states.sides for chunk in range(len(layout.chunks))):
            raise ValueError(RECORDED_AT_CFG_1)
        recorded = {site: states.at(site, moment.step) for site in states.by_site}
        _bring("recorded states", recorded, layout, moment, bank)

    def _states(self, moment: Moment) -> RecordedStates:
        """The recording of the sampling in progress."""
        number = int(moment.samplings_left == 0) if self.injection.strength else self.subject.lone
        return self.subject.samplings[number]

    def _shared_tokens(self, call: AttentionCall, bank: FeatureBank) -> Iterator[SharedTokens]:
        states, name = self._states(call.moment), _brought("recorded states", call.moment, call.site)
        if call.project is None or name not in bank:
            return
        recorded = bank.recall(name)
        if recorded.shape[1]:
            chunks = [states.sides.index(side_of(call.layout, chunk)) for chunk in range(len(call.layout.chunks))]
            key, value = call.project(recorded.to(call.key))
            sides = (taken(part, chunks, dim=0) for part in (key, value))
            yield SharedTokens(tuple(range(call.layout.images)), *sides)

    def _injects(self, moment: Moment) -> bool:
        features = self.subject.features
        return features is not None and len(features.patches) > 0 and super()._injects(moment)

    def _matches_of(self, image: int, patches: Tensor, subjects: Tensor) -> tuple[Tensor, Tensor]:
        assert self.subject.features is not None
        recorded = self.subject.features.patches.to(patches)
        place, distance = nearest_patches(patches[image], recorded, torch.ones_like(recorded[:, 0], dtype=torch.bool))
        return place, near_enough(distance)

    def _copied_from(self, call: AttentionCall, images: Tensor, bank: FeatureBank) -> Tensor:
        return bank.recall(_brought("recorded outputs", call.moment, call.site)).to(images)


def _bring(
    what: str, recorded: Mapping[AttentionSite, Tensor], layout: BatchLayout, moment: Moment, bank: FeatureBank
) -> None:
    """Puts what was recorded for a step where the model runs, at its first call of the step, and drops the step before.

    Inside an attention each of these copies would keep the GPU waiting.
    """
    step = _brought(what, moment)
    bank.forget(lambda name: isinstance(name, tuple) and name[:1] == step[:1] and name[: len(step)] != step)
    for site, tensor in recorded.items():
        bank.once(_brought(what, moment, site), lambda tensor=tensor: tensor.to(layout.device))


def _brought(what: str, moment: Moment, *site: AttentionSite) -> tuple[Hashable, ...]:
    """Under which name the bank keeps it."""
    return what, moment.samplings_left, moment.step, *site


def _require_ladder(recorded: tuple[float, ...], asked: tuple[float, ...]) -> None:
    """Refuses a run over other noise levels than those of a recording."""
    alike = len(recorded) == len(asked) and all(
        abs(one - other) <= SAME_LEVEL * one for one, other in zip(recorded, asked, strict=True)
    )
    if not alike:
        raise ValueError(
            f"The subject was recorded in {_ladder(recorded)}, but the sampler takes {_ladder(asked)}. Give the "
            "sampler the steps, scheduler and denoise of the recording, or record the subject anew. KSampler gives "
            "dpm_2 and uni_pc other noise levels than the rest: where either is one of them, take it for both."
        )


def _ladder(sigmas: tuple[float, ...]) -> str:
    middle = sigmas[len(sigmas) // 2]
    return f"{len(sigmas)} steps from sigma {sigmas[0]:.4g} over {middle:.4g} to {sigmas[-1]:.4g}"
