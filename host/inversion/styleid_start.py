"""StyleID's starting latent and noise levels, and the check that two trajectories fit each other and the MODEL."""

from __future__ import annotations

import math
from typing import Any, Literal

from torch import Tensor

from ...attention.families.family import ModelFamily
from ...attention.functional.inversion import MIDPOINT
from ...attention.functional.statistics import adain
from ...attention.methods.styleid.joint import JointStyleID
from ...attention.methods.styleid.method import StyleID
from ...attention.references.trajectory import ReferenceTrajectory, latent_pixels
from ..binding.model import map_transformer, map_unet
from ..binding.transformer import transformer_of
from ..identity import INVERT_AGAIN, check_model, stamp_of
from .ddim import sampling_sigmas
from .runs import Start, as_latent, falling_levels, start_latent

StartMode = Literal["official", "exact"]
START_MODES: tuple[StartMode, ...] = ("official", "exact")


def start_of(
    model: Any,
    content: ReferenceTrajectory,
    style: ReferenceTrajectory,
    mode: StartMode,
    adain_strength: float = 1.0,
) -> Start:
    """The content's noisy end with the style's statistics (AdaIN), and the falling noise levels from there.

    `exact` starts at the highest level that is sampled. `official` follows the authors' LDM code: it skips the first
    step and takes the latent from above the ladder as if it belonged to the second level. For trajectories of the
    `ddim` convention, which the authors' diffusers code follows, and for flow models, which have no code of theirs,
    the two are equal. `adain_strength` is from 0 to 1.
    """
    images = max(content.images, style.images)
    if content.convention == MIDPOINT:
        level = content.sigmas[-1]
        noise = _styled(content, style, level, adain_strength)
        return Start(as_latent(model, noise.expand(images, -1, -1, -1), level), falling_levels(content))
    official = mode == "official" and content.convention == "styleid"
    sigmas = sampling_sigmas(model, content, skip=1 if official else 0)
    # The point above the highest that is sampled: timestep 999 if the number of steps divides 1000.
    level = content.sigmas[content.steps] if official else sigmas[0].item()
    noise = _styled(content, style, level, adain_strength)
    return Start(start_latent(model, noise.expand(images, -1, -1, -1), sigmas[0].item()), sigmas)


def _styled(content: ReferenceTrajectory, style: ReferenceTrajectory, level: float, strength: float) -> Tensor:
    """The content's latent at a level with the style's statistics."""
    noise = content.at(level)
    return adain(noise, style.at(level), strength) if strength else noise


def family_for(model: Any) -> ModelFamily:
    """The family of a MODEL that StyleID acts on: a UNet or a diffusion transformer. Raises ValueError for others."""
    return map_unet(model).family if transformer_of(model.model) is None else map_transformer(model)


def form_for(model: Any) -> type[StyleID] | type[JointStyleID]:
    """The form of StyleID that acts on a MODEL."""
    return StyleID if transformer_of(model.model) is None else JointStyleID


def check_pair(model: Any, content: ReferenceTrajectory, style: ReferenceTrajectory) -> None:
    """Raises ValueError, saying what differs, if the trajectories do not fit each other or the MODEL."""
    here = stamp_of(model)
    for name, trajectory in (("content", content), ("style", style)):
        check_model(trajectory.stamp, here, model, f"The {name} trajectory was made", INVERT_AGAIN)
        if trajectory.noises is not None:
            raise ValueError(
                f"The {name} was inverted by Invert Image (edit-friendly), whose states lie on no common path: sampled "
                "without its noises it does not come back, so StyleID cannot keep it. Use Invert Image (DDIM, flow)."
            )
    if content.size != style.size:
        raise ValueError(
            f"The content is {latent_pixels(content.size)} and the style {latent_pixels(style.size)}, but both ride "
            "through the model together. Scale the style picture to the content's size before VAE Encode."
        )
    if (content.convention, content.steps) != (style.convention, style.steps):
        raise ValueError(
            f"The content was inverted in {content.steps} steps ({content.convention}) and the style in {style.steps} "
            f"({style.convention}). Invert both with the same steps and convention."
        )
    if not _same_ladder(content, style):
        raise ValueError(
            "The content and the style were inverted at other noise levels (another shift), though in as many steps. "
            "Invert both behind the same ModelSampling node, or both without one."
        )
    if 1 not in (content.images, style.images) and content.images != style.images:
        raise ValueError(
            f"There are {content.images} contents and {style.images} styles. Give one of either, or as many of both."
        )


def _same_ladder(content: ReferenceTrajectory, style: ReferenceTrajectory) -> bool:
    return len(content.sigmas) == len(style.sigmas) and all(
        math.isclose(one, other, rel_tol=1e-4) for one, other in zip(content.sigmas, style.sigmas, strict=True)
    )
