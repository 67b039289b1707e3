"""Whose the rows of a model call are, and which patches act where in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor

from ...attention.engine.call import AttentionSite
from ...attention.engine.layout import CHANGED_BATCH, BatchLayout, Crop
from ...attention.engine.moment import Moment
from ...attention.engine.unexpected import UnexpectedCall
from .carried import carried_patches
from .run import Run
from .unet import PatchWithBank


def layout_of(transformer_options: Mapping[str, Any], x: Tensor, run: Run) -> BatchLayout:
    """Whose the rows of a model call are, as far as the host tells."""
    numbers: Sequence[int] = transformer_options.get("cond_or_uncond", (0,))
    conditionings, uuids = run.conditionings, transformer_options.get("uuids")
    if conditionings is None or uuids is None:
        return BatchLayout.from_numbers(numbers, len(x), _latent_size(run, x, [None]))
    window = conditionings.window
    in_window = window is None or len(window.images) == conditionings.images
    if len(x) != len(numbers) * conditionings.images or not in_window:
        raise UnexpectedCall(
            f"The model was called with {len(x)} rows for {len(numbers)} conditionings of {conditionings.images} "
            "images.",
            CHANGED_BATCH,
        )
    keys = list(zip(numbers, uuids, strict=True))
    crops = [conditionings.crops.get(key) for key in keys]
    layout = BatchLayout.from_numbers(numbers, len(x), _latent_size(run, x, crops), conditionings.roles, crops)
    chunks = (
        replace(chunk, tag=conditionings.tags.get(key), text_tokens=conditionings.text_tokens.get(key))
        for chunk, key in zip(layout.chunks, keys, strict=True)
    )
    return replace(layout, chunks=tuple(chunks), tags=conditionings.conditional_tags, window=window)


def _latent_size(run: Run, x: Tensor, crops: Sequence[Crop | None]) -> tuple[int, int] | None:
    """The size of the whole latent, or None if `x` is a crop that ComfyUI did not cut, as Tiled Diffusion does."""
    sizes = {crop[:2] if crop else run.latent_size for crop in crops}
    return run.latent_size if sizes == {tuple(x.shape[-2:])} else None


class Acting(NamedTuple):
    """Who acts in a model call, in the order of the nodes."""

    patches: list[PatchWithBank]
    """All that the model carries."""
    at: dict[AttentionSite, Sequence[PatchWithBank]]
    """By site, those that act there now; sites without any are left out."""
    now: list[PatchWithBank]
    """Those that act anywhere now. One that does not has no use for guests and pictures."""


def acting_in(
    transformer_options: Mapping[str, Any], run: Run, sites: Sequence[AttentionSite], moment: Moment
) -> Acting:
    """Who of the patches that these options carry acts at a moment, and where."""
    patches = [(patch, run.bank_of(patch)) for patch in carried_patches(transformer_options)]
    asked = {site: [(patch, bank) for patch, bank in patches if patch.applies_to(site, moment)] for site in sites}
    at: dict[AttentionSite, Sequence[PatchWithBank]] = {site: those for site, those in asked.items() if those}
    met = {id(patch) for those in at.values() for patch, _ in those}
    return Acting(patches, at, [one for one in patches if id(one[0]) in met])
