"""What StyleID says of the text and the latent that a run on a flow model was given, once its sampler knows them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ...references.trajectory import ReferenceTrajectory, ShownText

SAME_TEXT = 0.02
"""Relative distance up to which two texts are one, encoded twice. Half precision makes less than a quarter of it."""
SAME_START = 0.95
"""Correlation from which a latent is the content's noise. The statistics of a style leave it at 1."""


def advice_on_text(trajectories: Sequence[ReferenceTrajectory], run: ShownText | None) -> Iterator[str]:
    """Sentences for the user where the run's text or guidance is not that of an inversion.

    `run` is None for a run with more than one text. On joint attention the pictures are looked at with the text of the
    run, and with another one they are not what the model passed.
    """
    kept = [trajectory.text for trajectory in trajectories]
    if run is None or not all(_says_the_same(text, run) for text in kept):
        yield (
            "The positive text of this run is not the one that the pictures were inverted with, and StyleID looks at "
            "them with the run's. Connect the same text here and to Invert Image."
        )
    here = None if run is None else run.guidance
    for there in dict.fromkeys(text.guidance for text in kept):
        if here is not None and there is not None and not math.isclose(here, there, rel_tol=1e-4):
            yield (
                f"The guidance in the text of this run (FluxGuidance) is {here:g}, but the pictures were inverted at "
                f"{there:g}. Set both alike."
            )


def advice_on_start(content: ReferenceTrajectory, state: Tensor) -> Iterator[str]:
    """A sentence if `state` (images, channels, height, width) is not the content's noise, whatever its statistics."""
    if state.shape[1:] != content.latents.shape[2:]:
        return  # which the plan of the run has refused, or a batch in windows
    own, given = _standardised(content.latents[-1].to(state)), _standardised(state)
    if (own * given).mean(dim=(1, 2, 3)).min() < SAME_START:
        yield (
            "The latent is not the noise of StyleID's content, so the picture will not keep the content's structure. "
            "Connect the LATENT of the StyleID node to the sampler."
        )


def _says_the_same(one: ShownText, other: ShownText) -> bool:
    return _is_same(one.context, other.context) and _is_same(one.vector, other.vector)


def _is_same(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether two parts of texts (images or 1, ...) say the same."""
    if one is None or other is None:
        return one is other
    if one.shape[1:] != other.shape[1:] or (len(one) != len(other) and 1 not in (len(one), len(other))):
        return False
    distance, whole = (part.square().flatten(1).sum(dim=1).sqrt() for part in (one - other, other))
    return bool(torch.all(distance <= SAME_TEXT * whole))


def _standardised(latent: Tensor) -> Tensor:
    """The latent with mean 0 and deviation 1 in each channel of each image."""
    centred = latent - latent.mean(dim=(2, 3), keepdim=True)
    return centred / centred.std(dim=(2, 3), keepdim=True, correction=0).clamp_min(1e-12)
