"""What StyleID is on every model: two inverted pictures, its settings, and the runs it refuses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...engine.guests import cannot_follow_a_crop
from ...engine.moment import RunPlan
from ...engine.protocols import Advises, NeedsMemory
from ...engine.replacing import Replaces
from ...engine.scope import Scope
from ...functional.inversion import MIDPOINT
from ...references.trajectory import ReferenceTrajectory, latent_pixels

CONTENT, STYLE = "content", "style"
RANDOM_SAMPLERS = ("ancestral", "sde", "lcm", "ddpm", "er_sde", "seeds", "sa_solver")
"""Parts of the names of samplers that add noise of their own, which no inverted trajectory holds."""


@dataclass(frozen=True, eq=False)
class StyleInjection(Replaces, NeedsMemory, Advises):
    """Puts the style trajectory's keys and values, and the content trajectory's queries, where the scope says.

    Acts on conditional and unconditional rows alike. Either trajectory holds one picture for all images of the batch,
    or one for each.
    """

    content: ReferenceTrajectory
    style: ReferenceTrajectory
    scope: Scope
    gamma: float = 0.75
    """0 keeps the queries of the moment, 1 takes the content's."""
    temperature: float = 1.5
    """Above 1 makes attention sharper."""
    strength: float = 1.0
    """0 is plain attention, 1 the method."""

    def extra_images(self, plan: RunPlan) -> float:
        at_once = plan.images if plan.window is None else plan.window
        guests = min(self.content.images, at_once) + min(self.style.images, at_once)
        return guests if self._acts(plan) else 0

    def check(self, plan: RunPlan) -> None:
        if self._on_a_flow and not plan.takes_state and self.content.ends_at(plan.start):
            raise ValueError(
                "On a flow model ComfyUI's own samplers scale an inverted picture to nothing before the first step. "
                "Sample by SamplerCustom with the sampler of the StyleID node."
            )
        if any(word in plan.sampler for word in RANDOM_SAMPLERS):
            raise ValueError(
                f"The sampler {plan.sampler.removeprefix('sample_')} adds noise of its own, which the inverted "
                "pictures do not hold. Choose euler or ddim."
            )
        if plan.adds_noise:
            raise ValueError(
                "The sampler node adds fresh noise, which the inverted pictures do not hold. Sample by SamplerCustom "
                "with the sampler of the StyleID node, or turn add_noise off."
            )
        if plan.inpaints:
            raise ValueError(
                "The latent carries a noise mask, which would mix fresh noise into an inverted picture. Remove the "
                "mask (Set Latent Noise Mask), and connect a mask to the StyleID node instead."
            )
        if plan.cropped and self._acts(plan):
            raise ValueError(cannot_follow_a_crop((CONTENT, STYLE)))
        if plan.conflicts:
            raise ValueError(
                f"{' and '.join(sorted(plan.conflicts))} on the same model changes what the inverted pictures would "
                "see. Bypass it."
            )
        for name, trajectory in ((CONTENT, self.content), (STYLE, self.style)):
            if trajectory.size != plan.size:
                raise ValueError(
                    f"The {name} trajectory is of {latent_pixels(trajectory.size)}, but the sampler works on "
                    f"{latent_pixels(plan.size)}. Connect the LATENT of the StyleID node to the sampler."
                )
            if trajectory.images not in (1, plan.images):
                raise ValueError(
                    f"The {name} trajectory holds {trajectory.images} pictures and the batch {plan.images} images. "
                    "Give one picture for all, or one for each image."
                )
            for moment in plan.looked_at:
                if self.scope.window.weight(moment):
                    trajectory.at(moment.sigma)

    def advice(self, plan: RunPlan) -> Sequence[str]:
        of_window = self.scope.advice(plan, "StyleID") if self.strength else ()
        return (*of_window, *self._advice_on_the_start(plan), *self._advice_on_the_steps(plan))

    def _advice_on_the_start(self, plan: RunPlan) -> Sequence[str]:
        """A run of a flow may go on from another, which nothing in its latent tells."""
        if not self._on_a_flow or self.content.ends_at(plan.start):
            return ()
        return (
            f"The latent is taken for a state at noise level {plan.start:.2g}. Connect the SIGMAS of StyleID whole, or "
            "the LATENT of the sampler before.",
        )

    def _advice_on_the_steps(self, plan: RunPlan) -> Sequence[str]:
        """Between the points of a flow the pictures are looked at on a line, which is not where the model led them."""
        if not self._on_a_flow or not self._acts(plan):
            return ()
        if all(self.content.passes(moment.sigma) for moment in plan.moments if self.scope.window.weight(moment)):
            return ()
        return (
            "The steps of this run are not those of the inversion, so StyleID looks at both pictures between the "
            "states that are known. Connect the SIGMAS of the StyleID node.",
        )

    def __repr__(self) -> str:
        parts = f"gamma {self.gamma:g}, temperature {self.temperature:g}, strength {self.strength:g}"
        return f"StyleID ({self.content.steps} steps, {self.content.convention}), {parts}, {self.scope}"

    @property
    def _on_a_flow(self) -> bool:
        return MIDPOINT in (self.content.convention, self.style.convention)
