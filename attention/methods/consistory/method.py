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

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import cast

import torch
from torch import Tensor

from ...engine.bank import FeatureBank
from ...engine.call import AttentionCall, AttentionSite, BlockCall
from ...engine.guests import PinnedImages
from ...engine.layout import BatchLayout
from ...engine.moment import Moment, RunPlan
from ...engine.patch import Attend, AttentionPatch
from ...engine.protocols import (
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
from ...functional.free_u import damp_low_frequencies, strengthen
from ...references.trajectory import ReferenceTrajectory
from ...subjects.blocks import StoryBlocks
from ...subjects.maps import SUBJECT_MASKS, Grid
from ...subjects.masks import SubjectMasks
from ...subjects.recording import SubjectRecorder, grid_of
from ...subjects.user_masks import UserMasks
from ...subjects.words import SubjectWords
from .anchors import Anchors
from .batch_anchors import BatchAnchors, selected_name
from .features import features_step
from .injection import inject, match_subjects, unit_patches
from .requirements import check_features, check_pictures, check_story, whole_picture
from .settings import KEPT_QUERIES, FreeU, Injection, QueryBlend, Sharing

CARRIED = "subject maps"
"""How the names begin under which a story's maps travel with the LATENT to a sampler that goes on."""
SEEN_GRID = "seen grid"


@dataclass(frozen=True, eq=False)
class ConsiStory(
    AttentionPatch, Prepares, Rehearses, SamplesAgain, EditsBlocks, KnowsImages, NeedsMemory, Reports, Resumes
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
            return site.block in self.blocks.words and self._needs_maps(moment)
        return self._shares_at(site, moment) or self._injects_at(site, moment)

    def passes(self, plan: RunPlan) -> int:
        return 2 if self._copies_in(plan) else 1

    def extra_images(self, plan: RunPlan) -> float:
        return KEPT_QUERIES * plan.images if self.sharing.strength and self.blend.strength else 0

    def pass_is_done(self, moment: Moment, bank: FeatureBank) -> bool:
        return not self.injection.strength or (self.fast and moment.step > features_step(moment))

    def _copies_in(self, plan: RunPlan) -> bool:
        """Whether features are copied at any step: a sampler that takes the last steps alone copies none."""
        return self.injection.strength != 0.0 and any(map(self.injection.window.contains, plan.moments))

    # Between two model calls

    def begin(self, layout: BatchLayout, moment: Moment, bank: FeatureBank) -> None:
        bank.forget_all("vanilla query")
        if self.recorder is not None:
            self.recorder.enter(layout, moment, self.sharing.anchors_among(layout.images))
        if not self._acts:
            return
        size, maps = whole_picture(layout), self._masks.maps(bank, moment.pass_number)
        if CARRIED in bank and (CARRIED, moment.pass_number) not in bank:
            sums, layers = bank.recall_all(CARRIED)
            maps.continue_from(sums.to(layout.device), layers)
            bank.remember((CARRIED, moment.pass_number), ())
        maps.forget_before(moment.step)
        if self._shares(moment):
            grids = {self.blocks.grid(block, size) for block in self.blocks.shared}
            self._prepare_masks({*grids, *_seen_grids(bank)}, layout, moment, bank)
        if self._injects(moment) and "features" in bank:
            self._matches(self.blocks.grid(self.blocks.injected[0], size), layout, moment, bank)
            self.anchors.prepare_outputs(layout, moment, bank)
        elif moment.is_last_pass and any(isinstance(name, tuple) and name[:1] == ("matches",) for name in bank):
            bank.forget_all("features")
            bank.forget_all("matches")

    def resume(self, found: Mapping[str, Tensor], bank: FeatureBank) -> bool:
        parts = [found.get(f"{CARRIED} ({part}) of {self.words.text}") for part in ("sums", "layers")]
        if any(part is None for part in parts):
            return False
        bank.remember(CARRIED, tuple(part for part in parts if part is not None))
        return True

    def _prepare_masks(self, grids: Iterable[Grid], layout: BatchLayout, moment: Moment, bank: FeatureBank) -> None:
        known = partial(self._masks.before, moment.step, moment.pass_number)
        now = partial(known, whole_picture(layout), layout.images, layout.device, bank)
        self.anchors.prepare(self.sharing, {grid: partial(now, grid) for grid in grids}, layout, moment, bank)

    # Subject-driven self-attention

    def edit_inputs(self, call: AttentionCall, bank: FeatureBank) -> AttentionCall:
        if call.site.kind == "cross":
            self._masks.maps(bank, call.moment.pass_number).record(call)
            return call
        if not self._shares_at(call.site, call.moment):
            return call
        if self.anchors.follow_masks and selected_name(call.moment, grid_of(call)) not in bank:
            # Another node resizes the features inside the UNet, so this grid could not be told from the latent's size.
            bank.remember((SEEN_GRID, grid_of(call)), ())
            self._prepare_masks([grid_of(call)], call.layout, call.moment, bank)
        weight, vanilla = self.blend.weight(call.moment), ("vanilla query", call.site)
        query = torch.lerp(call.query, bank.recall(vanilla), weight) if vanilla in bank else call.query
        if self.recorder is not None:
            self.recorder.see(call, bank.recall_all(selected_name(call.moment, grid_of(call))))
        shared = self.anchors.tokens(self.sharing, call, bank)
        return replace(call, query=query, shared=merge_shared(*call.shared, *shared))

    def edit_output(self, call: AttentionCall, output: Tensor, attend: Attend, bank: FeatureBank) -> Tensor:
        if call.shared and self.sharing.strength != 1.0:
            output = torch.lerp(attend(call.query, call.key, call.value, call.mask), output, self.sharing.strength)
        # Mixing before `to_out` equals the authors' mixing after it: the two weights sum to 1 and the projection is
        # affine.
        if self._injects_at(call.site, call.moment) and "features" in bank:
            output = inject(
                output,
                call.layout.conditional_rows,
                self._matches(grid_of(call), call.layout, call.moment, bank),
                lambda images: self.anchors.outputs(call, images, bank),
                self.injection,
            )
            if self.recorder is not None:
                self.recorder.copy(call, output)
        return output

    # Query blending

    def rehearses(self, moment: Moment) -> bool:
        return self._shares(moment) and self.blend.weight(moment) != 0.0

    def observe(self, call: AttentionCall, bank: FeatureBank) -> None:
        if self._shares_at(call.site, call.moment):
            bank.remember(("vanilla query", call.site), call.query)

    # Features and their matches

    def enters(self, block: str, moment: Moment) -> bool:
        return self._records_features(block, moment) or self._free_u_level(block) is not None

    def edit_block(self, call: BlockCall, bank: FeatureBank) -> BlockCall:
        level = self._free_u_level(call.block)
        if self.free_u is not None and level is not None:
            hidden = strengthen(call.hidden, self.free_u.backbone[level])
            call = replace(call, hidden=hidden, skip=damp_low_frequencies(call.skip, self.free_u.skip[level]))
        # Record after FreeU: the authors store a reference to the tensor that their FreeU later scales in place.
        if self._records_features(call.block, call.moment) and not call.rehearsal:
            # Summed over conditionings, so that it does not matter in which order ComfyUI sends them.
            for rows in call.layout.tagged_rows(self.words.text):
                features = call.hidden[rows].float()
                known = "features" in bank
                bank.remember("features", bank.recall("features") + features if known else features.clone())
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
        if not self._acts:
            return {}
        grid = self.blocks.grid(self.blocks.injected[0], plan.size)
        last_with_maps = plan.passes if self._shares_by_mask else plan.passes - 1
        mask = self._masks.before(len(plan.moments), last_with_maps, plan.size, plan.images, None, bank, grid)
        found = {} if mask is None else {SUBJECT_MASKS: torch.unflatten(mask, 1, grid).cpu()}
        sums, layers = self._masks.maps(bank, last_with_maps).last(len(plan.moments))
        if sums is None:
            return found
        parts = {"sums": sums.cpu(), "layers": layers}
        return found | {f"{CARRIED} ({part}) of {self.words.text}": tensor for part, tensor in parts.items()}

    def pins(self, moment: Moment) -> PinnedImages | None:
        if self.pictures is None or not self._acts:
            return None
        return PinnedImages(self.pictures.at(moment.sigma), self.pictures.latents[0])

    @property
    def _masks(self) -> SubjectMasks:
        return SubjectMasks(self.words, self.masks)

    @property
    def _acts(self) -> bool:
        return bool(self.sharing.strength or self.injection.strength)

    @property
    def _shares_by_mask(self) -> bool:
        return self.sharing.strength != 0.0 and self.anchors.follow_masks

    def _needs_maps(self, moment: Moment) -> bool:
        return self._shares_by_mask or (self.injection.strength != 0.0 and not moment.is_last_pass)

    def _shares(self, moment: Moment) -> bool:
        """At the first step there are no masks yet, unless another run found some."""
        return self.sharing.strength != 0.0 and (moment.step > 0 or moment.continued)

    def _shares_at(self, site: AttentionSite, moment: Moment) -> bool:
        return site.kind == "self" and site.block in self.blocks.shared and self._shares(moment)

    def _injects_at(self, site: AttentionSite, moment: Moment) -> bool:
        return site.kind == "self" and site.block in self.blocks.injected and self._injects(moment)

    def _injects(self, moment: Moment) -> bool:
        wanted = self.injection.strength != 0.0 and moment.is_last_pass and self.anchors.have_features
        return wanted and self.injection.window.contains(moment)

    def _records_features(self, block: str, moment: Moment) -> bool:
        recording = moment.pass_number == moment.passes - 1 and moment.step == features_step(moment)
        return recording and self.injection.strength != 0.0 and block == self.blocks.features

    def _free_u_level(self, block: str) -> int | None:
        return self.free_u.level(block) if self.free_u is not None and self._acts else None

    def check(self, plan: RunPlan) -> None:
        check_story(plan, self.words, self.masks, self._acts)
        if self._copies_in(plan):
            check_features(plan)
        if self.pictures is not None:
            check_pictures(plan, self.pictures, self.sharing.anchors_among(plan.images))
        if self.recorder is None:  # a recording may be of one image, for others to attend to
            self.anchors.check(plan, self.sharing)

    def __repr__(self) -> str:
        label = self.anchors.label(self.words, self.sharing)
        extras = {"FreeU": self.free_u, "your masks": self.masks, "your pictures": self.pictures, "fast": self.fast}
        parts = [label, f"query blend {self.blend.strength:g}, injection {self.injection.strength:g}"]
        return ", ".join([*parts, *(name for name, on in extras.items() if on)])


def _seen_grids(bank: FeatureBank) -> list[Grid]:
    """The grids of attentions that were not foretold."""
    return [cast(Grid, name[1]) for name in bank if isinstance(name, tuple) and name[:1] == (SEEN_GRID,)]
