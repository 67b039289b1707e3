"""When a story does what: the attentions, steps and passes in which it shares, copies and looks at words."""

from __future__ import annotations

from dataclasses import dataclass

from ...engine.call import AttentionSite
from ...engine.moment import Moment, RunPlan
from ...subjects.blocks import StoryBlocks
from .anchors import Anchors
from .features import features_step
from .settings import Injection, Sharing

GONE_ON = 0.01
"""How much of the noise schedule lies before a run that goes on where another ended."""


@dataclass(frozen=True, eq=False)
class StorySchedule:
    """When a story shares tokens and copies features, by its settings."""

    blocks: StoryBlocks
    sharing: Sharing
    injection: Injection
    anchors: Anchors

    @property
    def acts(self) -> bool:
        return bool(self.sharing.strength or self.injection.strength)

    @property
    def shares_by_mask(self) -> bool:
        return self.sharing.strength != 0.0 and self.anchors.follow_masks

    def needs_maps(self, moment: Moment) -> bool:
        wanted = self.shares_by_mask or (self.injection.strength != 0.0 and not moment.is_last_pass)
        return wanted and not moment.extra

    def shares(self, moment: Moment) -> bool:
        """At the first step there are no masks yet, unless another run found some."""
        return self.sharing.strength != 0.0 and (moment.step > 0 or moment.continued)

    def shares_at(self, site: AttentionSite, moment: Moment) -> bool:
        return site.kind == "self" and site.block in self.blocks.shared and self.shares(moment)

    def copies(self, moment: Moment) -> bool:
        wanted = self.injection.strength != 0.0 and moment.is_last_pass and self.anchors.have_features
        return wanted and self.injection.window.contains(moment)

    def copies_at(self, site: AttentionSite, moment: Moment) -> bool:
        return site.kind == "self" and site.block in self.blocks.injected and self.copies(moment)

    def copies_in(self, plan: RunPlan) -> bool:
        """Whether features are copied at any step: a sampler that takes the last steps alone copies none."""
        return self.injection.strength != 0.0 and any(map(self.injection.window.contains, plan.moments))

    def advice(self, plan: RunPlan) -> tuple[str, ...]:
        """What of the settings meets no step of a run, in sentences for the user."""
        window, found = self.injection.window, list[str]()
        if self.sharing.strength and not any(map(self.shares, plan.moments)):
            found.append(
                "The images of the story share nothing in this run: masks are made in its first step, and no other "
                "follows. Take more steps."
            )
        elif self.shares_by_mask and _goes_on(plan) and not plan.moments[0].continued:
            found.append(
                "The sampler goes on from another, but the subject masks found there did not come along, so its first "
                "step shares nothing. Connect the LATENT of the one sampler straight to the next."
            )
        if self.injection.strength and not self.copies_in(plan):
            found.append(
                f"No features are copied between the images in this run: none of its {len(plan.moments)} steps lies "
                f"between inject_from {window.start:g} and inject_until {window.end:g}. Widen that range, or take more "
                "steps."
            )
        return tuple(found)

    def records_features(self, block: str, moment: Moment) -> bool:
        recording = moment.pass_number == moment.passes - 1 and moment.step == features_step(moment)
        return recording and not moment.extra and self.injection.strength != 0.0 and block == self.blocks.features


def _goes_on(plan: RunPlan) -> bool:
    """Whether a run starts from an image that is still noisy."""
    return not plan.adds_noise and not plan.empty and bool(plan.moments) and plan.moments[0].progress > GONE_ON
