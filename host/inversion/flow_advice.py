"""What StyleID has to say of a run on a flow model when its sampler starts: by then text and latent are known."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...attention.methods.styleid.given import advice_on_start, advice_on_text
from ...attention.methods.styleid.injection import StyleInjection
from ...attention.methods.styleid.joint import JointStyleID
from ...attention.references.trajectory import ShownText
from ..binding.model import patches_on
from ..conditioning import shown_text


def advice_on_styleid(guider: Any, state: Tensor, sigma: float) -> str:
    """Sentences for the user, a line each, on a run that begins from `state` at a noise level. Empty without any."""
    lines: list[str] = []
    for patch in patches_on(guider.model_patcher):
        if isinstance(patch, StyleInjection) and patch.strength:
            lines += _lines(patch, guider, state[:, :, 0] if state.ndim == 5 else state, sigma)
    return "\n".join(dict.fromkeys(lines))


def _lines(patch: StyleInjection, guider: Any, state: Tensor, sigma: float) -> list[str]:
    lines: list[str] = []
    if isinstance(patch, JointStyleID):
        lines += advice_on_text((patch.content, patch.style), _text_of(guider, len(state)))
    if patch.content.ends_at(sigma):
        lines += advice_on_start(patch.content, state)
    return lines


def _text_of(guider: Any, images: int) -> ShownText | None:
    """The run's positive text; None for several prompts, one for a part of picture or steps, or other sides."""
    if "positive" not in guider.conds:
        return None
    try:
        return shown_text(guider, images)
    except ValueError:
        return None
