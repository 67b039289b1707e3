"""A second subject method stands on `attention/subjects` and the engine alone, without ConsiStory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from semblance.attention.engine.bank import FeatureBank
from semblance.attention.engine.call import AttentionCall, AttentionSite
from semblance.attention.engine.moment import Moment, RunPlan
from semblance.attention.engine.patch import Attend, AttentionPatch
from semblance.attention.engine.protocols import Reports
from semblance.attention.families import CONSISTORY, SD15
from semblance.attention.subjects.blocks import StoryBlocks
from semblance.attention.subjects.maps import SUBJECT_MASKS, grid_of
from semblance.attention.subjects.masks import SubjectMasks
from semblance.host.binding.model import add_patch
from semblance.host.subjects.masks import subject_masks_of
from semblance.tests.support.studio import STORY, Studio


@dataclass(frozen=True, eq=False)
class Spotlight(AttentionPatch, Reports):
    """Makes the subject's tokens stand out in self-attention."""

    masks: SubjectMasks
    blocks: StoryBlocks
    strength: float

    def applies_to(self, site: AttentionSite, moment: Moment) -> bool:
        if not self.strength:
            return False
        return site.block in (self.blocks.words if site.kind == "cross" else self.blocks.shared)

    def edit_output(self, call: AttentionCall, output: Tensor, attend: Attend, bank: FeatureBank) -> Tensor:
        layout, moment = call.layout, call.moment
        if call.site.kind == "cross":
            self.masks.maps(bank, moment.pass_number).record(call)
            return output
        assert layout.latent_size is not None
        mask = self.masks.before(
            moment.step, moment.pass_number, layout.latent_size, layout.images, layout.device, bank, grid_of(call)
        )
        if mask is None:
            return output
        subject = mask.repeat(len(layout.chunks), 1).unsqueeze(2).to(output)
        return output * (1 + self.strength * subject)

    def findings(self, plan: RunPlan, bank: FeatureBank) -> dict[str, Tensor]:
        grid = self.blocks.grid(self.blocks.words[0], plan.size)
        mask = self.masks.before(len(plan.moments), plan.passes, plan.size, plan.images, None, bank, grid)
        return {} if mask is None else {SUBJECT_MASKS: mask.unflatten(1, grid)}


def spotlight(studio: Studio, strength: float) -> Tensor:
    blocks = SD15.choice(CONSISTORY)
    patch = Spotlight(SubjectMasks(STORY), blocks, strength)
    return studio.sample(add_patch(studio.model, patch), images=2)


def test_it_changes_the_picture_and_tells_where_the_subject_is(sd15: Studio) -> None:
    plain, made = spotlight(sd15, 0.0), spotlight(sd15, 0.5)
    assert not torch.equal(made, plain)
    masks = subject_masks_of({"samples": made})
    assert masks.shape[0] == 2 and 0 < masks.mean() < 1


def test_at_strength_zero_it_leaves_the_model_untouched(sd15: Studio) -> None:
    assert torch.equal(spotlight(sd15, 0.0), sd15.sample(images=2))
