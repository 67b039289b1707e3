"""Which way a picture is inverted on a MODEL: by DDIM where it predicts noise or v, by the midpoint rule on a flow."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor

from ...attention.functional.inversion import DDIM_CONVENTIONS, MIDPOINT, Convention, DDIMConvention
from ...attention.references.trajectory import ReferenceTrajectory
from ..binding.noise_schedule import is_flow
from ..conditioning import Text
from . import ddim, flow
from .runs import Inversion, NoiselessSampler, check_plain, noiseless_euler


def convention_for(model: Any, chosen: DDIMConvention) -> Convention:
    """The convention that a MODEL is inverted by: the chosen one, or that of flow models, which have but one."""
    return MIDPOINT if is_flow(model) else chosen


def invert(model: Any, pictures: Tensor, steps: int, convention: Convention, text: Text) -> Inversion:
    """Inverts clean latents (images, channels, height, width), as from VAE Encode and `picture_latents`, as one batch.

    Raises ValueError for a model, a number of steps or a text that cannot be used.
    """
    check_plain(model)
    if convention == MIDPOINT:
        return flow.invert_flow(model, pictures, steps, text)
    assert convention in DDIM_CONVENTIONS
    return ddim.invert(model, pictures, steps, cast(DDIMConvention, convention), text)


def sample_back(model: Any, trajectory: ReferenceTrajectory, text: Text) -> Tensor:
    """The pictures sampled from the noisy end over the trajectory's points, as latents for VAE Decode."""
    if trajectory.convention == MIDPOINT:
        return flow.sample_flow_back(model, trajectory, text)
    return ddim.sample_back(model, trajectory, text)


def retracing_sampler(trajectory: ReferenceTrajectory) -> NoiselessSampler | flow.StateSampler:
    """The SAMPLER that goes a trajectory's way back, from its noise, over its noise levels falling."""
    return flow.flow_sampler() if trajectory.convention == MIDPOINT else noiseless_euler()
