"""ConsiStory (arXiv:2402.03286): one subject in all scenes of a batch, without training.

The batch is sampled twice from the same noise. In both samplings the decoder's self-attentions of an image also see
the subject's keys and values in the anchor images (subject-driven self-attention), where the subject's mask comes from
the attention to its words at the steps before. Two things keep the layouts from growing alike: part of each mask is
dropped at random, and for the first steps the queries are mixed with those the model has without sharing:

    Q* = v_t Q_vanilla + (1 - v_t) Q

The first sampling finds which patches of two images show the same part of the subject. In the second, self-attention
features are copied along those matches:

    h_i <- strength * h_source[match] + (1 - strength) * h_i
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ...engine.bank import FeatureBank
from ...engine.call import AttentionCall, AttentionSite, BlockCall, SharedTokens
from ...engine.guests import PinnedImages
from ...engine.layout import BatchLayout
from ...engine.moment import Moment, RunPlan
from ...engine.patch import Attend, AttentionPatch
from ...engine.sharing import see_all
from ...functional.correspondence import near_enough, nearest_patches, patches_of, smooth
from ...functional.free_u import damp_low_frequencies, strengthen
from ...references.trajectory import ReferenceTrajectory
from ...subjects.blocks import StoryBlocks
from ...subjects.maps import SUBJECT_MASKS, Grid, SubjectMaps
from ...subjects.recording import SubjectRecorder, grid_of
from ...subjects.user_masks import UserMasks
from ...subjects.words import SubjectWords
from .settings import FreeU, Injection, QueryBlend, Sharing

FEATURES_AT = 1 - 261 / 999
"""Progress of the run at which features match best (DIFT's timestep 261)."""
CROPPED = (
    "An area conditioning or a tiling node shows the model a crop of the pictures, where subjects cannot be followed. "
    "Remove Conditioning (Set Area) or the tiling node."
)


@dataclass(frozen=True, eq=False)
class ConsiStory(AttentionPatch):
    """Keeps the subjects of `words` alike in all images of a batch, where each image has a prompt of its own."""

    words: SubjectWords
    blocks: StoryBlocks
    sharing: Sharing = field(default_factory=Sharing)
    blend: QueryBlend = field(default_factory=QueryBlend)
    injection: Injection = field(default_factory=Injection)
    free_u: FreeU | None = None
    masks: UserMasks | None = None
    fast: bool = False
    """Ends the first sampling once its matches are known, and leaves out the rehearsal that nothing uses."""
    pictures: ReferenceTrajectory | None = None
    """Real pictures as the first anchors: at every step they are what their inversion says, and so cannot drift."""
    recorder: SubjectRecorder | None = None
    """Writes down the anchors of one run, for whoever started that run."""

    def require(self, plan: RunPlan) -> None:
        self._require_whole_story(plan)
        if plan.images < 2 and self.recorder is None:
            raise ValueError("A story of one scene has no other image to be alike. Write two scenes or more.")

    def _require_whole_story(self, plan: RunPlan) -> None:
        if plan.images != self.words.scenes:
            raise ValueError(
                f"The story has {self.words.scenes} scenes but the latent {plan.images} images. Set the batch size of "
                "Empty Latent Image to the count that Story Prompts gives."
            )
        if plan.others:
            raise ValueError(
                f"{' and '.join(sorted(plan.others))} on the same model changes which tokens the images share. "
                "Bypass it."
            )
        if plan.cropped and (self.sharing.strength or self.injection.strength):
            raise ValueError(CROPPED)
        if plan.devices > 1:
            raise ValueError(
                f"The model is spread over {plan.devices} GPUs, but the images of a story share what is found on one. "
                "Bypass MultiGPU CFG Split."
            )
        if self.masks is not None and len(self.masks.mask.values) not in (1, plan.images):
            raise ValueError(
                f"There are {len(self.masks.mask.values)} subject masks for {plan.images} images. Connect one mask, or "
                "one for each image."
            )

        self._require_pictures(plan)

    def _require_pictures(self, plan: RunPlan) -> None:
        if self.pictures is None:
            return
        anchors = self.sharing.looked_at(plan.images)
        if self.pictures.images > anchors:
            raise ValueError(
                f"There are {self.pictures.images} inverted pictures, but the story has {anchors} anchors. Set anchors "
                f"to {self.pictures.images}, and begin the scenes with a line for each picture that says what it shows."
            )
        if self.pictures.latents.shape[2] != plan.channels:
            raise ValueError(
                f"The model takes {plan.channels} channels where the inverted pictures have "
                f"{self.pictures.latents.shape[2]}: it is an inpainting model, to which they cannot be shown. Load an "
                "ordinary checkpoint, or disconnect the pictures."
            )
        if self.pictures.size != plan.size:
            (height, width), (rows, columns) = self.pictures.size, plan.size
            raise ValueError(
                f"The inverted pictures are {width}x{height} in the latent, but the story's images {columns}x{rows}. "
                "Make both of one size."
            )
        for moment in plan.moments:
            self.pictures.index(moment.sigma)  # refuses what lies between its points

    def samplings(self, plan: RunPlan) -> int:
        return 2 if self.injection.strength else 1

    def is_enough(self, moment: Moment, bank: FeatureBank) -> bool:
        return not self.injection.strength or (self.fast and moment.step > features_step(moment))

    def findings(self, plan: RunPlan, bank: FeatureBank) -> dict[str, Tensor]:
        """The masks after the last step, on the grid that features are copied on."""
        if not (self.sharing.strength or self.injection.strength):
            return {}
        grid = self.blocks.grid(self.blocks.injected[0], plan.size)
        layout = BatchLayout((), plan.images, plan.size)
        mask = self._mask(layout, bank, self._last_with_maps, len(plan.moments), grid)
        return {} if mask is None else {SUBJECT_MASKS: torch.unflatten(mask, 1, grid).cpu()}

    def applies_to(self, site: AttentionSite, moment: Moment) -> bool:
        if site.kind == "cross":
            return site.block in self.blocks.words and self._needs_maps(moment)
        return self._shares_at(site, moment) or self._injects_at(site, moment)

    def pins(self, moment: Moment) -> PinnedImages | None:
        if self.pictures is None or not (self.sharing.strength or self.injection.strength):
            return None
        return PinnedImages(self.pictures.at(moment.sigma), self.pictures.latents[0])

    def rehearses(self, moment: Moment) -> bool:
        if not self.sharing.strength or (self.fast and moment.step == 0):
            return False
        return self.blend.weight(moment) != 0.0

    def observe(self, call: AttentionCall, bank: FeatureBank) -> None:
        if self._shares_at(call.site, call.moment):
            bank.remember(("vanilla query", call.site), call.query)

    def enters(self, block: str, moment: Moment) -> bool:
        return self._records_features(block, moment) or self._free_u_level(block) is not None

    def edit_block(self, call: BlockCall, bank: FeatureBank) -> BlockCall:
        level = self._free_u_level(call.block)
        if self.free_u is not None and level is not None:
            hidden = strengthen(call.hidden, self.free_u.backbone[level])
            call = replace(call, hidden=hidden, skip=damp_low_frequencies(call.skip, self.free_u.skip[level]))
        # After FreeU: the authors' store keeps a reference, which their FreeU then scales in place.
        if self._records_features(call.block, call.moment) and not call.rehearsal:
            # Summed over conditionings, so that it does not matter in which order ComfyUI sends them.
            for rows in call.layout.story_rows(self.words.text):
                features = call.hidden[rows].float()
                bank.remember(
                    "features", bank.recall("features") + features if "features" in bank else features.clone()
                )
        return call

    def begin(self, layout: BatchLayout, moment: Moment, bank: FeatureBank) -> None:
        _forget(bank, "vanilla query")
        if self.recorder is not None:
            self.recorder.enter(layout, moment, self.sharing.looked_at(layout.images))
        if not (self.sharing.strength or self.injection.strength):
            return
        _whole_picture(layout)
        self._maps(bank, moment.samplings_left).forget_before(moment.step)
        if self.sharing.strength and moment.step:
            self._prepare_sharing(layout, moment, bank)
        if self._injects(moment) and "features" in bank:
            bank.once("matches", lambda: self._match(layout, moment, bank))

    def edit_inputs(self, call: AttentionCall, bank: FeatureBank) -> AttentionCall:
        if call.site.kind == "cross":
            self._maps(bank, call.moment.samplings_left).record(call)
            return call
        if not self._shares_at(call.site, call.moment):
            return call
        weight, vanilla = self.blend.weight(call.moment), ("vanilla query", call.site)
        query = torch.lerp(call.query, bank.recall(vanilla), weight) if vanilla in bank else call.query
        if self.recorder is not None:
            self.recorder.see(call, bank.recall_all(selected_name(call.moment, grid_of(call))))
        return replace(call, query=query, shared=see_all(*call.shared, *self._shared_tokens(call, bank)))

    def edit_output(self, call: AttentionCall, output: Tensor, attend: Attend, bank: FeatureBank) -> Tensor:
        if call.shared and self.sharing.strength != 1.0:
            output = torch.lerp(attend(call.query, call.key, call.value, call.mask), output, self.sharing.strength)
        # Copied before the output projection and not after it: the shares add up to 1, so that it is the same.
        if self._injects_at(call.site, call.moment) and "matches" in bank:
            output = self._injected(call, output, bank)
            if self.recorder is not None:
                self.recorder.copy(call, output)
        return output

    def __repr__(self) -> str:
        parts = [
            f"{self.words}, {self.sharing.anchors or 'all'} anchors",
            f"sharing {self.sharing.strength:g}, dropout {self.sharing.dropout.share:g}",
            f"query blend {self.blend.strength:g}, injection {self.injection.strength:g}",
        ]
        extras = [
            name
            for name, on in (
                ("FreeU", self.free_u),
                ("your masks", self.masks),
                ("your pictures", self.pictures),
                ("fast", self.fast),
            )
            if on
        ]
        return f"ConsiStory of {', '.join([*parts, *extras])}"

    @property
    def _last_with_maps(self) -> int:
        """The last sampling that masks are made in, by how many come after it."""
        return 0 if self.sharing.strength else 1

    def _needs_maps(self, moment: Moment) -> bool:
        return self.sharing.strength != 0.0 or (self.injection.strength != 0.0 and moment.samplings_left > 0)

    def _shares_at(self, site: AttentionSite, moment: Moment) -> bool:
        """At the first step there are no masks yet."""
        wanted = self.sharing.strength != 0.0 and moment.step > 0
        return wanted and site.kind == "self" and site.block in self.blocks.shared

    def _injects_at(self, site: AttentionSite, moment: Moment) -> bool:
        return site.kind == "self" and site.block in self.blocks.injected and self._injects(moment)

    def _injects(self, moment: Moment) -> bool:
        wanted = self.injection.strength != 0.0 and moment.samplings_left == 0
        return wanted and moment.step in self.injection.window.steps(moment.steps)

    def _records_features(self, block: str, moment: Moment) -> bool:
        recording = moment.samplings_left == 1 and moment.step == features_step(moment)
        return recording and self.injection.strength != 0.0 and block == self.blocks.features

    def _free_u_level(self, block: str) -> int | None:
        return None if self.free_u is None else self.free_u.level(block)

    def _maps(self, bank: FeatureBank, samplings_left: int) -> SubjectMaps:
        return SubjectMaps(self.words, bank, samplings_left)

    def _mask(
        self, layout: BatchLayout, bank: FeatureBank, samplings_left: int, step: int, grid: Grid
    ) -> Tensor | None:
        """The subjects' mask before a step of a sampling, bool (images, tokens)."""
        found, masks = self._maps(bank, samplings_left).mask(step, grid), self.masks
        if masks is None:
            return found
        drawn = bank.once(("user masks", grid), lambda: masks.on_grid(_whole_picture(layout), grid))
        return masks.combined(drawn, found, layout.images)

    def _prepare_sharing(self, layout: BatchLayout, moment: Moment, bank: FeatureBank) -> None:
        """Selects what is shared at this step, unless an earlier call of it has."""
        size = _whole_picture(layout)
        for grid in {self.blocks.grid(block, size) for block in self.blocks.shared}:
            name = selected_name(moment, grid)
            if name not in bank:
                _forget(bank, *name[:2])
                bank.remember(name, self._select(layout, moment, grid, bank))

    def _select(self, layout: BatchLayout, moment: Moment, grid: Grid, bank: FeatureBank) -> tuple[Tensor, ...]:
        """For each image the places of its tokens that others see at this step: (tokens,) each."""
        mask = self._mask(layout, bank, moment.samplings_left, moment.step, grid)
        if mask is None:
            return ()
        # The one tensor read back from the device at a step, for how many tokens there are shapes what follows.
        kept = mask.cpu() & ~self.sharing.dropout.draw(moment.step, layout.images, grid)
        return tuple(places.nonzero().squeeze(1).to(mask.device) for places in kept)

    def _shared_tokens(self, call: AttentionCall, bank: FeatureBank) -> Iterator[SharedTokens]:
        """The tokens of the subject in other images, for all that look at the same images at once."""
        layout = call.layout
        selected = bank.recall_all(selected_name(call.moment, grid_of(call)))
        if not selected:
            return
        watchers: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for image in range(layout.images):
            watchers[tuple(self.sharing.sources(image, layout.images))].append(image)
        key, value = (
            torch.unflatten(rows[: layout.host_rows], 0, (-1, layout.images)) for rows in (call.key, call.value)
        )  # -> (chunks, images, tokens, channels)
        for sources, images in watchers.items():
            if sources:
                shared = (
                    torch.cat([part[:, s].index_select(1, selected[s]) for s in sources], 1) for part in (key, value)
                )
                yield SharedTokens(tuple(images), *shared)

    def _match(self, layout: BatchLayout, moment: Moment, bank: FeatureBank) -> tuple[Tensor, Tensor]:
        """For every patch of every image its match and whether it takes it: both (images, patches).

        A match is counted over the patches of all images in turn.
        """
        grid = self.blocks.grid(self.blocks.injected[0], _whole_picture(layout))
        patches = patches_of(smooth(bank.recall("features")), *grid)
        subjects = self._mask(layout, bank, 1, moment.steps, grid)
        if subjects is None:
            subjects = torch.zeros(patches.shape[:2], dtype=torch.bool, device=patches.device)
        subjects = subjects.to(patches.device)
        found = [self._matches_of(image, patches, subjects) for image in range(layout.images)]
        if self.recorder is not None:
            self.recorder.match(patches, subjects)
        _forget(bank, "features")
        matches, wanted = (torch.stack(part) for part in zip(*found, strict=True))
        return matches, wanted & subjects

    def _matches_of(self, image: int, patches: Tensor, subjects: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest patch among all sources of one image, and whether it is near enough: (patches,) each."""
        count = patches.shape[1]
        own = torch.arange(count, device=patches.device)
        sources = self.sharing.sources(image, len(patches))
        if not sources:
            return image * count + own, torch.zeros_like(own, dtype=torch.bool)
        found = [nearest_patches(patches[image], patches[source], subjects[source]) for source in sources]
        distances = torch.stack([distance for _, distance in found])
        best = distances.min(dim=0)
        places = torch.stack([source * count + place for source, (place, _) in zip(sources, found, strict=True)])
        return places.gather(0, best.indices[None])[0], near_enough(best.values)

    def _injected(self, call: AttentionCall, output: Tensor, bank: FeatureBank) -> Tensor:
        """The conditional rows with features of their matches mixed in."""
        matches, wanted = bank.recall_all("matches")
        output = output.clone()
        for rows in call.layout.conditional_rows:
            after = output[rows]
            patches = self._copied_from(call, after, bank)
            for image, (match, here) in enumerate(zip(matches, wanted, strict=True)):
                copied = patches.index_select(0, match)
                mixed = torch.lerp(after[image], copied, self.injection.strength)
                after[image] = torch.where(here[:, None], mixed, after[image])
        return output

    def _copied_from(self, call: AttentionCall, images: Tensor, bank: FeatureBank) -> Tensor:
        """The features (patches, channels) that matches count: those of all images in turn."""
        return (images if self.injection.in_turn else images.clone()).flatten(0, 1)


def features_step(moment: Moment) -> int:
    """The step of the run nearest to where features match best."""
    return min(range(len(moment.ladder)), key=lambda step: abs(moment.ladder[step] - FEATURES_AT), default=0)


def selected_name(moment: Moment, grid: Grid) -> tuple[str, Grid, int, int]:
    """Under which name the bank keeps the places that others see of each image at a step."""
    return "selected", grid, moment.samplings_left, moment.step


def _forget(bank: FeatureBank, *beginning: Hashable) -> None:
    """Drops what is kept under names that begin so."""
    bank.forget(lambda name: (name if isinstance(name, tuple) else (name,))[: len(beginning)] == beginning)


def _whole_picture(layout: BatchLayout) -> tuple[int, int]:
    if layout.latent is None or any(chunk.area is not None for chunk in layout.chunks):
        raise ValueError(CROPPED)
    return layout.latent
