"""Guest rows: latents of a patch's own that ride through the UNet beside the sampler's, and leave before it looks.

Guests have text conditioning and size vector of their own. No ControlNet acts on them: they replay what they are.
Block-level patches of other packs (FreeU, deep shrink) treat every row alike and act on guests too; attention-level
ones may count rows per conditioning, so they are shown the sampler's rows only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.ldm.modules.attention as host_attention
import torch
from torch import Tensor

from ...attention.engine.bank import FeatureBank
from ...attention.engine.guests import Guest, cannot_follow_a_crop
from ...attention.engine.layout import BatchLayout, GuestRows
from ...attention.engine.moment import Moment
from ...attention.engine.patch import AttentionPatch
from ...attention.engine.protocols import BringsGuests
from ...attention.engine.unexpected import UnexpectedCall
from ...attention.functional.attention import joined_contexts
from .carried import Uncopied
from .occupants import Occupant, tell_rows

Control = dict[str, list[Tensor | None]] | None


@dataclass(frozen=True)
class InvitedGuests:
    """The guests of one call, with the patch each belongs to."""

    owned: tuple[tuple[AttentionPatch, Guest], ...]

    @classmethod
    def invite(
        cls,
        patches: Sequence[tuple[AttentionPatch, FeatureBank]],
        layout: BatchLayout,
        moment: Moment,
    ) -> InvitedGuests:
        """Asks every patch for its guests in this call, and brings them to the model's device."""
        return cls(
            tuple(
                (patch, _brought(guest, bank, layout, moment))
                for patch, bank in patches
                if isinstance(patch, BringsGuests)
                for guest in patch.guests(layout, moment, bank)
            )
        )

    def with_more(self, owned: Sequence[tuple[AttentionPatch, Guest]]) -> InvitedGuests:
        """These and others, which come after."""
        return InvitedGuests((*self.owned, *owned))

    @property
    def rows(self) -> tuple[GuestRows, ...]:
        return tuple(GuestRows(patch, guest.name, guest.rows) for patch, guest in self.owned)

    @property
    def guests(self) -> tuple[Guest, ...]:
        return tuple(guest for _, guest in self.owned)


def _brought(guest: Guest, bank: FeatureBank, layout: BatchLayout, moment: Moment) -> Guest:
    parts = (guest.latent, guest.context, *([] if guest.vector is None else [guest.vector]))
    return Guest(guest.name, *brought(parts, f"guest {guest.name}", bank, layout, moment))


def brought(
    tensors: Sequence[Tensor], what: str, bank: FeatureBank, layout: BatchLayout, moment: Moment
) -> tuple[Tensor, ...]:
    """Tensors on the model's device, copied there once for all calls that show the same images at a noise level."""
    name = what, layout.device, moment.sigma, layout.image_indices
    if name not in bank:
        bank.forget_all(*name[:2])
    return bank.once(name, lambda: tuple(tensor.to(layout.device) for tensor in tensors))


def seat_guests(
    invited: InvitedGuests,
    layout: BatchLayout,
    x: Tensor,
    timesteps: Tensor,
    context: Tensor,
    y: Tensor | None,
    control: Control,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Control]:
    """The inputs of the UNet with the guests' rows after the sampler's. Without guests, the inputs themselves."""
    guests = invited.guests
    if not guests:
        return x, timesteps, context, y, control
    _check_seats(guests, layout, x, context, y)
    rows = sum(guest.rows for guest in guests)
    vectors = [_expanded(guest.vector, guest) for guest in guests if guest.vector is not None]
    return (
        torch.cat([x, *(guest.latent.to(x) for guest in guests)]),
        torch.cat([timesteps, timesteps[:1].expand(rows)]),
        joined_contexts([context, *(_expanded(guest.context, guest).to(context) for guest in guests)]),
        None if y is None else torch.cat([y, *(vector.to(y) for vector in vectors)]),
        with_empty_control(control, layout.host_rows, rows),
    )


def shield_from_guests(transformer_options: Mapping[str, Any], layout: BatchLayout) -> dict[str, Any]:
    """Options whose attention-level patches and replacements of other packs see the sampler's rows only."""
    options = dict(transformer_options)
    options["patches"] = {
        name: [_SHIELDS[name](patch, layout) for patch in patches] if name in _SHIELDS else patches
        for name, patches in options.get("patches", {}).items()
    }
    options["patches_replace"] = {
        slot: {key: ShieldedOccupant(occupant, layout) for key, occupant in occupants.items()}
        for slot, occupants in options.get("patches_replace", {}).items()
    }
    return options


def _check_seats(guests: Sequence[Guest], layout: BatchLayout, x: Tensor, context: Tensor, y: Tensor | None) -> None:
    if any(chunk.crop is not None for chunk in layout.chunks):
        raise ValueError(cannot_follow_a_crop(sorted({guest.name for guest in guests})))
    for guest in guests:
        if guest.latent.shape[1:] != x.shape[1:]:
            raise _misfit(guest, x, whole=layout.latent_size is not None)
        if guest.context.shape[-1] != context.shape[-1] or (guest.vector is None) != (y is None):
            raise ValueError(
                f"The reference latent '{guest.name}' comes with the conditioning of another family of models "
                f"({guest.context.shape[-1]}-wide text, the model reads {context.shape[-1]}). Make it with this model."
            )


def _misfit(guest: Guest, x: Tensor, whole: bool) -> ValueError:
    """Why a guest cannot ride beside `x`, which shows the whole picture or a part of it."""
    found = f"The reference latent '{guest.name}' is {_size(guest.latent)}, but the"
    if guest.latent.shape[1] != x.shape[1]:
        return ValueError(f"{found} model takes {x.shape[1]} channels. Make it with this model.")
    if whole:
        return ValueError(f"{found} sampler works on {_size(x)}. Make both of one size.")
    return UnexpectedCall(
        f"{found} model is shown a part of the picture, {_size(x)}, which reference latents cannot follow.",
        "Bypass the node that cuts the picture up, as Tiled Diffusion and Sliding Window Guidance do.",
    )


def _size(latent: Tensor) -> str:
    return f"{latent.shape[-1]}x{latent.shape[-2]} latent pixels of {latent.shape[1]} channels"


def _expanded(tensor: Tensor, guest: Guest) -> Tensor:
    return tensor.expand(guest.rows, *tensor.shape[1:])


def with_empty_control(control: Control, rows: int, guests: int) -> Control:
    """ControlNet residuals with zeros for the guests."""
    if control is None:
        return None

    def widened(residual: Tensor | None) -> Tensor | None:
        if residual is None:
            return None
        seated = residual.expand(rows, *residual.shape[1:]) if len(residual) == 1 else residual
        return torch.cat([seated, residual.new_zeros(guests, *residual.shape[1:])])

    return {part: [widened(residual) for residual in residuals] for part, residuals in control.items()}


def _apart(tensor: Tensor, layout: BatchLayout) -> tuple[Tensor, Tensor]:
    """The sampler's rows, of which another pack may have made more, and the guests', which are always the last."""
    host = len(tensor) - (layout.rows - layout.host_rows)
    return tensor[:host], tensor[host:]


@dataclass(frozen=True, eq=False)
class ShieldedOccupant(Uncopied):
    """Another pack's attention, which sees the sampler's rows; the guests have plain attention."""

    occupant: Occupant
    layout: BatchLayout

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, extra: dict[str, Any]) -> Tensor:
        (queries, query), (keys, key), (values, value) = (_apart(part, self.layout) for part in (query, key, value))
        replaced = self.occupant(queries, keys, values, tell_rows(extra, self.layout.host_rows))
        precision = extra.get("attn_precision")
        plain = host_attention.optimized_attention(
            query, key, value, extra["n_heads"], attn_precision=precision, transformer_options=extra
        )
        return _rejoined(replaced, plain)


def _shield_inputs(patch: Callable[..., tuple[Tensor, ...]], layout: BatchLayout) -> Callable[..., tuple[Tensor, ...]]:
    """For `attn1_patch`: (queries' source, context, values' source, extra)."""

    def shielded(*arguments: Any) -> tuple[Tensor, ...]:
        *sources, extra = arguments
        apart = {id(source): _apart(source, layout) for source in sources}
        hosts, guests = zip(*(apart[id(source)] for source in sources), strict=True)
        patched = patch(*hosts, tell_rows(extra, layout.host_rows))
        # One tensor that serves as keys' and values' source stays one: what comes after asks whether the two differ.
        pairs = {(id(host), id(guest)): (host, guest) for host, guest in zip(patched, guests, strict=True)}
        joined = {ids: _rejoined(*pair) for ids, pair in pairs.items()}
        return tuple(joined[id(host), id(guest)] for host, guest in zip(patched, guests, strict=True))

    return shielded


def _shield_texts(patch: Callable[..., tuple[Tensor, ...]], layout: BatchLayout) -> Callable[..., tuple[Tensor, ...]]:
    """For `attn2_patch`, as `_shield_inputs`; the texts may become longer, as those of regions do."""

    def shielded(*arguments: Any) -> tuple[Tensor, ...]:
        *sources, extra = arguments
        hosts, (hidden, *texts) = zip(*(_apart(source, layout) for source in sources), strict=True)
        patched, *read = patch(*hosts, tell_rows(extra, layout.host_rows))
        return _rejoined(patched, hidden), *map(_rejoined_texts, read, texts)

    return shielded


def _shield_output(patch: Callable[..., Tensor], layout: BatchLayout) -> Callable[..., Tensor]:
    """For `attn1_output_patch`, `attn2_output_patch` and `middle_patch`: (tensor, extra)."""

    def shielded(output: Tensor, extra: dict[str, Any]) -> Tensor:
        host, guests = _apart(output, layout)
        return _rejoined(patch(host, tell_rows(extra, layout.host_rows)), guests)

    return shielded


_SHIELDS: Mapping[str, Callable[[Any, BatchLayout], Callable[..., Any]]] = {
    "attn1_patch": _shield_inputs,
    "attn2_patch": _shield_texts,
    "attn1_output_patch": _shield_output,
    "attn2_output_patch": _shield_output,
    "middle_patch": _shield_output,
}


def _rejoined(host: Tensor, guests: Tensor) -> Tensor:
    if host.shape[1:] != guests.shape[1:]:
        raise UnexpectedCall(
            f"Another node changes the tokens inside the model from {guests.shape[1]} to {host.shape[1]}, which the "
            "reference latents cannot follow.",
            "Bypass that node; ToMe, HyperTile, NegPip and StyleAligned are of this kind.",
        )
    return torch.cat([host, guests])


def _rejoined_texts(host: Tensor, guests: Tensor) -> Tensor:
    """Texts of the sampler's rows, which a pack may have repeated up to a common length, with the guests'."""
    longer = host.shape[1] % guests.shape[1] == 0
    return joined_contexts([host, guests]) if longer else _rejoined(host, guests)
