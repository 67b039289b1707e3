"""ConsiStory (arXiv:2402.03286): one subject in all scenes of a batch, without training.

The batch is sampled in two passes from the same noise. In both, the decoder's self-attentions of an image also attend
to the subject in the anchor images (subject-driven self-attention). The subject's mask comes from the attention to its
words at the steps before. Two things keep the layouts from growing alike: part of each mask is dropped at random, and
in the first steps the queries are mixed with those that the model has without sharing:

    Q* = v_t Q_vanilla + (1 - v_t) Q

The first pass finds which patches of two images show the same part of the subject. In the second, self-attention
features are copied along those matches:

    h_i <- strength * h_source[match] + (1 - strength) * h_i
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from ...engine.bank import FeatureBank
from ...engine.call import AttentionCall, AttentionSite, BlockCall
from ...engine.guests import PinnedImages
from ...engine.layout import BatchLayout
from ...engine.moment import Moment, RunPlan
from ...engine.patch import Attend, AttentionPatch
from ...engine.protocols import (
    Advises,
    EditsBlocks,
    KnowsImages,
    NeedsMemory,
    Prepares,
    Rehearses,
    Reports,
    Resumes,
    SamplesAgain,
)
from ...engine.sharing import merge_shared
from ...references.trajectory import ReferenceTrajectory
from ...subjects.blocks import StoryBlocks
from ...subjects.carried_maps import carried_maps, continue_maps, take_carried_maps
from ...subjects.maps import SUBJECT_MASKS, Grid, grid_of
from ...subjects.masks import SubjectMasks
from ...subjects.recorder import SubjectRecorder
from ...subjects.user_masks import UserMasks
from ...subjects.words import SubjectWords
from .anchors import Anchors
from .batch_anchors import BatchAnchors, note_grid, seen_grids, selected_name
from .features import features_step, record_features
from .injection import inject, match_subjects, unit_patches
from .requirements import check_features, check_pictures, check_story, whole_picture
from .schedule import StorySchedule
from .settings import KEPT_QUERIES, FreeU, Injection, QueryBlend, Sharing
from .vanilla import blend_vanilla, forget_vanilla, keep_vanilla


@dataclass(frozen=True, eq=False)
class ConsiStory(
    AttentionPatch,
    Prepares,
    Rehearses,
    SamplesAgain,
    EditsBlocks,
    KnowsImages,
    NeedsMemory,
    Advises,
    Reports,
    Resumes,
):
    """Keeps the subjects of `words` alike in all images of a batch. Each image has a prompt of its own."""

    words: SubjectWords
    blocks: StoryBlocks
    sharing: Sharing = field(default_factory=Sharing)
    blend: QueryBlend = field(default_factory=QueryBlend)
    injection: Injection = field(default_factory=Injection)
    free_u: FreeU | None = None
    masks: UserMasks | None = None
    fast: bool = False
    """Ends the first pass once its matches are known."""
    pictures: ReferenceTrajectory | None = None
    """Real pictures as the first anchors: at every step they are the latents of their inversion, and cannot drift."""
    recorder: SubjectRecorder | None = None
    """Writes down the anchors of one run for the caller who started that run."""
    anchors: Anchors = field(default_factory=BatchAnchors)
    """The first images of the batch, or recorded ones."""

    # Which attentions, in which steps and passes

    def applies_to(self, site: AttentionSite, moment: Moment) -> bool:
        if site.kind == "cross":
            return site.block in self.blocks.words and self._when.needs_maps(moment)
        return self._when.shares_at(site, moment) or self._when.copies_at(site, moment)

    def passes(self, plan: RunPlan) -> int:
        return 2 if self._when.copies_in(plan) else 1

    def extra_images(self, plan: RunPlan) -> float:
        return KEPT_QUERIES * plan.images if self.sharing.strength and self.blend.strength else 0

    def pass_is_done(self, moment: Moment, bank: FeatureBank) -> bool:
        return not self.injection.strength or (self.fast and moment.step > features_step(moment))

    # Between two model calls

    def begin(self, layout: BatchLayout, moment: Moment, bank: FeatureBank) -> None:
        if not moment.extra:
            forget_vanilla(moment, bank)
            if self.recorder is not None:
                self.recorder.enter(layout, moment, self.sharing.anchors_among(layout.images))
        if not self._when.acts:
            return
        size, maps = whole_picture(layout), self._masks.maps(bank, moment.pass_number)
        continue_maps(maps, moment.pass_number, layout.device, bank)
        maps.forget_before(moment.step)
        if self._when.shares(moment):
            grids = {self.blocks.grid(block, size) for block in self.blocks.shared}
            self._prepare_masks({*grids, *seen_grids(bank)}, layout, moment, bank)
        if self._when.copies(moment) and "features" in bank:
            self._matches(self.blocks.grid(self.blocks.injected[0], size), layout, moment, bank)
            self.anchors.prepare_outputs(layout, moment, bank)
        elif moment.is_last_pass and any(isinstance(name, tuple) and name[:1] == ("matches",) for name in bank):
            bank.forget_all("features")
            bank.forget_all("matches")

    def resume(self, found: Mapping[str, Tensor], bank: FeatureBank) -> bool:
        return take_carried_maps(found, self.words, bank)

    def _prepare_masks(self, grids: Iterable[Grid], layout: BatchLayout, moment: Moment, bank: FeatureBank) -> None:
        known = partial(self._masks.before, moment.step, moment.pass_number)
        now = partial(known, whole_picture(layout), layout.images, layout.device, bank)
        self.anchors.prepare(self.sharing, {grid: partial(now, grid) for grid in grids}, layout, moment, bank)

    # Subject-driven self-attention

    def edit_inputs(self, call: AttentionCall, bank: FeatureBank) -> AttentionCall:
        if call.site.kind == "cross":
            self._masks.maps(bank, call.moment.pass_number).record(call)
            return call
        if not self._when.shares_at(call.site, call.moment):
            return call
        if self.anchors.follow_masks and selected_name(call.moment, grid_of(call)) not in bank:
            # Another node resizes the features inside the UNet, so this grid could not be told from the latent's size.
            note_grid(grid_of(call), bank)
            self._prepare_masks([grid_of(call)], call.layout, call.moment, bank)
        weight = self.blend.weight(call.moment)
        query = blend_vanilla(call, weight, bank) if weight else call.query
        if self.recorder is not None and not call.moment.extra:
            self.recorder.see(call, bank.recall_all(selected_name(call.moment, grid_of(call))))
        shared = self.anchors.tokens(self.sharing, call, bank)
        return replace(call, query=query, shared=merge_shared(*call.shared, *shared))

    def edit_output(self, call: AttentionCall, output: Tensor, attend: Attend, bank: FeatureBank) -> Tensor:
        if call.shared and self.sharing.strength != 1.0:
            output = torch.lerp(attend(call.query, call.key, call.value, call.mask), output, self.sharing.strength)
        # Mixing before `to_out` equals the authors' mixing after it: the two weights sum to 1 and the projection is
        # affine.
        if self._when.copies_at(call.site, call.moment) and "features" in bank:
            output = inject(
                output,
                call.layout.conditional_rows,
                self._matches(grid_of(call), call.layout, call.moment, bank),
                lambda images: self.anchors.outputs(call, images, bank),
                self.injection,
            )
            if self.recorder is not None and not call.moment.extra:
                self.recorder.copy(call, output)
        return output

    # Query blending

    def rehearses(self, moment: Moment) -> bool:
        return self._when.shares(moment) and not moment.extra and self.blend.weight(moment) != 0.0

    def observe(self, call: AttentionCall, bank: FeatureBank) -> None:
        if self._when.shares_at(call.site, call.moment):
            keep_vanilla(call, bank)

    # Features and their matches

    def enters(self, block: str, moment: Moment) -> bool:
        return self._when.records_features(block, moment) or (self._free_u is not None and self._free_u.edits(block))

    def edit_block(self, call: BlockCall, bank: FeatureBank) -> BlockCall:
        if self._free_u is not None:
            call = self._free_u.edit(call)
        # After FreeU: the authors store a reference to the tensor that their FreeU later scales in place.
        if self._when.records_features(call.block, call.moment) and not call.rehearsal:
            record_features(call, self.words.text, bank)
        return call

    def _matches(self, grid: Grid, layout: BatchLayout, moment: Moment, bank: FeatureBank) -> tuple[Tensor, ...]:
        """The matches of every patch of a grid, found once with the features and the masks of the pass before."""

        def match() -> tuple[Tensor, ...]:
            patches = unit_patches(bank.recall("features"), grid)
            known = partial(self._masks.before, moment.steps, moment.passes - 1)
            subjects = known(whole_picture(layout), layout.images, layout.device, bank, grid)
            if subjects is None:
                subjects = torch.zeros(patches.shape[:2], dtype=torch.bool)
            subjects = subjects.to(patches.device)
            if self.recorder is not None:
                self.recorder.match(grid, patches, subjects)
            return match_subjects(patches, subjects, partial(self.anchors.match, self.sharing))

        return bank.once(("matches", grid), match)

    # Masks and real pictures

    def findings(self, plan: RunPlan, bank: FeatureBank) -> dict[str, Tensor]:
        """The masks after the last step, on the grid that features are copied on."""
        if not self._when.acts:
            return {}
        grid = self.blocks.grid(self.blocks.injected[0], plan.size)
        last_with_maps = plan.passes if self._when.shares_by_mask else plan.passes - 1
        mask = self._masks.before(len(plan.moments), last_with_maps, plan.size, plan.images, None, bank, grid)
        found = {} if mask is None else {SUBJECT_MASKS: torch.unflatten(mask, 1, grid).cpu()}
        return found | carried_maps(self.words, self._masks.maps(bank, last_with_maps), len(plan.moments))

    def pins(self, moment: Moment) -> PinnedImages | None:
        if self.pictures is None or not self._when.acts:
            return None
        return PinnedImages(self.pictures.at(moment.sigma), self.pictures.latents[0])

    @property
    def _masks(self) -> SubjectMasks:
        return SubjectMasks(self.words, self.masks)

    @property
    def _free_u(self) -> FreeU | None:
        return self.free_u if self._when.acts else None

    @property
    def _when(self) -> StorySchedule:
        return StorySchedule(self.blocks, self.sharing, self.injection, self.anchors)

    def check(self, plan: RunPlan) -> None:
        check_story(plan, self.words, self.masks, self._when.acts)
        if self._when.copies_in(plan):
            check_features(plan)
        if self.pictures is not None:
            check_pictures(plan, self.pictures, self.sharing.anchors_among(plan.images))
        if self.recorder is None:  # a recording may be of one image, for others to attend to
            self.anchors.check(plan, self.sharing, self.injection)

    def advice(self, plan: RunPlan) -> Sequence[str]:
        return self._when.advice(plan)

    def __repr__(self) -> str:
        label = self.anchors.label(self.words, self.sharing)
        extras = {"FreeU": self.free_u, "your masks": self.masks, "your pictures": self.pictures, "fast": self.fast}
        parts = [label, f"query blend {self.blend.strength:g}, injection {self.injection.strength:g}"]
        return ", ".join([*parts, *(name for name, on in extras.items() if on)])
