"""One call of the model: patches bind to their sites around whatever other packs have put there, then let go."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from ...attention.engine.call import AttentionSite
from ...attention.engine.guests import PinnedImages
from ...attention.engine.layout import CHANGED_BATCH, BatchLayout, Crop
from ...attention.engine.moment import Moment
from ...attention.engine.patch import AttentionPatch
from ...attention.engine.protocols import KnowsImages, Prepares, Rehearses
from ...attention.engine.unexpected import UnexpectedCall
from .carried import carried_patches
from .guests import Control, InvitedGuests, brought, seat_guests, shield_from_guests
from .regions import Regions
from .run import RUN, Run
from .unet import LayerInputs, PatchWithBank, attention_sites, bound_sites, with_block_edits


def diffusion_model(
    executor: Any,
    x: Tensor,
    timesteps: Tensor,
    context: Tensor,
    y: Tensor | None,
    control: dict[str, list[Tensor | None]] | None,
    transformer_options: dict[str, Any],
    **named: Any,
) -> Tensor:
    """DIFFUSION_MODEL wrapper: binds the carried patches for this call only.

    Wrappers run after the graph is built, so the order of nodes does not matter and no other pack meets our objects.
    """
    run: Run = transformer_options[RUN]
    run.attendance.called = True
    try:
        return _called(executor, run, x, timesteps, context, y, control, transformer_options, named)
    except UnexpectedCall as unexpected:
        raise ValueError(unexpected.beside(run.others())) from unexpected


def _called(
    executor: Any,
    run: Run,
    x: Tensor,
    timesteps: Tensor,
    context: Tensor,
    y: Tensor | None,
    control: Control,
    transformer_options: dict[str, Any],
    named: Mapping[str, Any],
) -> Tensor:
    """The call with the patches bound to it."""
    layout = replace(_layout(transformer_options, x, run), device=x.device)
    # The one number read back from the device in a call, and outside every attention.
    moment = run.moment(float(transformer_options["sigmas"][0]))
    patches = [(patch, run.bank_of(patch)) for patch in carried_patches(transformer_options)]
    run.end_finished_pass(patches, moment)
    wanted = _wanted(run.sites_of(executor.class_obj, attention_sites), patches, moment)
    acting = {id(patch) for those in wanted.values() for patch, _ in those}
    # A patch that acts nowhere now has no use for its guests.
    guests = InvitedGuests.invite([one for one in patches if id(one[0]) in acting], layout, moment)
    layout = replace(layout, guests=guests.rows)
    for patch, bank in patches:
        if isinstance(patch, Prepares):
            patch.begin(layout, moment, bank)
    x = _with_pinned(run, x, layout, patches, moment)
    x, timesteps, context, y, control = seat_guests(guests, layout, x, timesteps, context, y, control)
    options = shield_from_guests(transformer_options, layout) if layout.guests else dict(transformer_options)
    regions = Regions(tuple(transformer_options.get("cond_or_uncond", (0,))), context)
    inputs = LayerInputs(executor.class_obj, _noted_sites(wanted, layout), regions)
    given, occupied = inputs.noting(options.get("patches", {})), options.get("patches_replace", {})
    options["patches"] = with_block_edits(given, patches, layout, moment, rehearsal=True)
    rehearsed, met = set[int](), set[int]()
    for rehearsing in _rehearsing(patches, moment):
        options["patches_replace"] = bound_sites(occupied, wanted, layout, moment, inputs, rehearsed, rehearsing)
        executor(x, timesteps, context, y, _copied(control), options, **named)
    options["patches"] = with_block_edits(given, patches, layout, moment)
    options["patches_replace"] = bound_sites(occupied, wanted, layout, moment, inputs, met)
    output = executor(x, timesteps, context, y, control, options, **named)[: layout.host_rows]
    _take_attendance(run, [patch for patch, _ in patches if id(patch) in acting], rehearsed, met, transformer_options)
    return output


def _noted_sites(sites: Iterable[AttentionSite], layout: BatchLayout) -> frozenset[AttentionSite]:
    """Sites whose inputs are noted: self-attentions; cross-attentions only if a method looks for words of its own."""
    return frozenset(site for site in sites if site.kind == "self" or layout.tags)


def _take_attendance(
    run: Run, acting: Sequence[AttentionPatch], rehearsed: set[int], met: set[int], options: Mapping[str, Any]
) -> None:
    run.attendance.met |= met
    if "easycache" in options:  # which never skips a first step; methods that it would mislead refuse it by name
        return
    run.attendance.want(acting)
    run.attendance.check_rehearsed(rehearsed, met, run.others)


def _layout(transformer_options: Mapping[str, Any], x: Tensor, run: Run) -> BatchLayout:
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


def _with_pinned(run: Run, x: Tensor, layout: BatchLayout, patches: Sequence[PatchWithBank], moment: Moment) -> Tensor:
    """The sampler's rows with the images that a patch knows; the run keeps them for the result."""
    for patch, bank in patches:
        if isinstance(patch, KnowsImages) and (pinned := patch.pins(moment)) is not None:
            images = brought((pinned.latents, pinned.clean), "pinned images", bank, layout, moment)
            run.pinned = PinnedImages(*images)
    run.shown = layout.image_indices
    return x if run.pinned is None else run.pinned.into_noisy(x, run.shown)


def _wanted(
    sites: Sequence[AttentionSite], patches: Sequence[PatchWithBank], moment: Moment
) -> dict[AttentionSite, Sequence[PatchWithBank]]:
    """By site, the patches that act there now; sites without any are left out."""
    wanted = {site: [(patch, bank) for patch, bank in patches if patch.applies_to(site, moment)] for site in sites}
    return {site: those for site, those in wanted.items() if those}


def _rehearsing(patches: Sequence[PatchWithBank], moment: Moment) -> Iterator[PatchWithBank]:
    return ((patch, bank) for patch, bank in patches if isinstance(patch, Rehearses) and patch.rehearses(moment))


def _copied(control: Control) -> Control:
    """ControlNet residuals for a call of their own: the UNet takes them off their lists one by one."""
    return None if control is None else {part: list(residuals) for part, residuals in control.items()}
