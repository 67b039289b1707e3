"""What a transformer cannot take beside a patch that shows it pictures: refused before the first step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ...attention.engine.guests import ShownPicture
from ...attention.engine.moment import Moment, RunPlan
from ...attention.engine.patch import AttentionPatch
from ...attention.engine.protocols import ShowsPictures
from .attendance import wants
from .transformer import Transformer


def check_fit(
    transformer: Transformer, patches: Sequence[AttentionPatch], plan: RunPlan, conds: Mapping[str, Any]
) -> None:
    """Raises ValueError for pictures larger than the model has places for, and for others among a video's frames."""
    acting: dict[AttentionPatch, Moment] = {}
    for moment in plan.moments:
        for patch in wants(patches, transformer.sites, moment):
            acting.setdefault(patch, moment)
    for patch, moment in acting.items():
        if isinstance(patch, ShowsPictures):
            _check_entries(transformer, conds)
            shown = (picture for picture in patch.pictures(moment) if isinstance(picture, ShownPicture))
            _check_sizes(transformer, (picture.clean for picture in shown))


def _check_entries(transformer: Transformer, conds: Mapping[str, Any]) -> None:
    for entry, node in transformer.kind.among_frames.items():
        if any(cond.get(entry) is not None for group in conds.values() for cond in group):
            raise ValueError(
                f"The conditioning holds {entry}, pictures that {transformer.name} puts among the frames, where a "
                f"Semblance patch cannot tell them apart. Connect a conditioning without them: bypass {node}."
            )


def _check_sizes(transformer: Transformer, latents: Iterable[Tensor]) -> None:
    for latent in latents:
        _, height, width = transformer.picture_tokens(latent)
        if transformer.widest is not None and max(height, width) > transformer.widest:
            most = transformer.widest * transformer.patch
            raise ValueError(
                f"The reference is {latent.shape[-1]}x{latent.shape[-2]} latent pixels, and {transformer.name} has "
                f"places for {most}x{most} at most. Scale the picture down before VAE Encode."
            )
