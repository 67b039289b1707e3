"""One call of the model: patches bind to their sites around whatever other packs have put there, then let go."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from ...attention.engine.call import AttentionSite
from ...attention.engine.guests import PinnedImages
from ...attention.engine.layout import BatchLayout
from ...attention.engine.moment import Moment
from ...attention.engine.protocols import KnowsImages, Prepares, Rehearses
from .guests import Control, InvitedGuests, brought, seat_guests, shield_from_guests
from .layouts import acting_in, layout_of
from .neighbours import others_call
from .regions import Regions
from .run import RUN, Run
from .unet import LayerInputs, PatchWithBank, bound_sites, with_block_edits
from .unet_pictures import UnetPictures
from .unet_sites import attention_sites


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
    with run.model_call():
        return _called(executor, run, x, timesteps, context, y, control, transformer_options, named)


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
    layout = replace(layout_of(transformer_options, x, run), device=x.device)
    # The one number read back from the device in a call, and outside every attention.
    moment = run.moment(float(transformer_options["sigmas"][0]))
    patches, acting_at, acting = acting_in(
        transformer_options, run, run.read(executor.class_obj, attention_sites), moment
    )
    run.end_finished_pass(patches, moment)
    alone = others_call(getattr(run.models.get(x.device), "current_patcher", None), transformer_options, unet=True)
    pictures = UnetPictures.of(acting, layout, moment, x, context, y, run, alone)
    guests = InvitedGuests.invite(acting, layout, moment).with_more(pictures.beside)
    layout = replace(layout, guests=guests.rows)
    for patch, bank in patches:
        if isinstance(patch, Prepares):
            patch.begin(layout, moment, bank)
    x = _with_pinned(run, x, layout, patches, moment)
    x, timesteps, context, y, control = seat_guests(guests, layout, x, timesteps, context, y, control)
    kept = pictures.look_at_those_apart(executor, timesteps, transformer_options, acting_at, named)
    options = shield_from_guests(transformer_options, layout) if layout.guests else dict(transformer_options)
    regions = Regions(tuple(transformer_options.get("cond_or_uncond", (0,))), context)
    inputs = LayerInputs(executor.class_obj, _noted_sites(acting_at, layout), regions)
    given, occupied = inputs.noting(options.get("patches", {})), options.get("patches_replace", {})
    options["patches"] = with_block_edits(given, patches, layout, moment, rehearsal=True)
    rehearsed, met = set[int](), set[int]()
    for rehearsing in _rehearsing(patches, moment):
        options["patches_replace"] = bound_sites(
            occupied, acting_at, layout, moment, inputs, kept, rehearsed, rehearsing
        )
        executor(x, timesteps, context, y, _copied(control), options, **named)
    options["patches"] = with_block_edits(given, patches, layout, moment)
    options["patches_replace"] = bound_sites(occupied, acting_at, layout, moment, inputs, kept, met)
    output = executor(x, timesteps, context, y, control, options, **named)[: layout.host_rows]
    run.attendance.take([patch for patch, _ in acting], rehearsed, met, transformer_options, run.others)
    return output


def _noted_sites(sites: Iterable[AttentionSite], layout: BatchLayout) -> frozenset[AttentionSite]:
    """Sites whose inputs are noted: self-attentions; cross-attentions only if a method looks for words of its own."""
    return frozenset(site for site in sites if site.kind == "self" or layout.tags)


def _with_pinned(run: Run, x: Tensor, layout: BatchLayout, patches: Sequence[PatchWithBank], moment: Moment) -> Tensor:
    """The sampler's rows with the images that a patch knows; the run keeps them for the result."""
    for patch, bank in patches:
        if isinstance(patch, KnowsImages) and (pinned := patch.pins(moment)) is not None:
            images = brought((pinned.latents, pinned.clean), "pinned images", bank, layout, moment)
            run.pinned = PinnedImages(*images)
    run.shown = layout.image_indices
    return x if run.pinned is None else run.pinned.into_noisy(x, run.shown)


def _rehearsing(patches: Sequence[PatchWithBank], moment: Moment) -> Iterator[PatchWithBank]:
    return ((patch, bank) for patch, bank in patches if isinstance(patch, Rehearses) and patch.rehearses(moment))


def _copied(control: Control) -> Control:
    """ControlNet residuals for a call of their own: the UNet takes them off their lists one by one."""
    return None if control is None else {part: list(residuals) for part, residuals in control.items()}
