"""Pictures that patches show the model: noised to the level of the call, beside the sampler's rows or before them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...attention.engine.bank import FeatureBank
from ...attention.engine.guests import InvertedPicture, ShownPicture
from ...attention.engine.layout import BatchLayout, GuestRows
from ...attention.engine.moment import Moment
from ...attention.engine.patch import AttentionPatch
from ...attention.engine.protocols import ShowsPictures
from .conditions import Conditions, Prompts, join_conditions, nothing_to_fill
from .unet import PatchWithBank


@dataclass(frozen=True, eq=False)
class Seat:
    """One row of a picture: beside which chunk it is looked at, and what the model is given for it."""

    patch: AttentionPatch
    name: str
    latent: Tensor  # (1, channels, [frames,] height, width), with the noise of the call
    conditions: Conditions


@dataclass(frozen=True, eq=False)
class SeatsApart:
    """Rows that go through the model together, before the sampler's."""

    seats: tuple[Seat, ...]

    @property
    def x(self) -> Tensor:
        return torch.cat([seat.latent for seat in self.seats])

    @property
    def conditions(self) -> Conditions:
        return join_conditions([seat.conditions for seat in self.seats])

    @property
    def shown(self) -> list[tuple[AttentionPatch, str]]:
        return [(seat.patch, seat.name) for seat in self.seats]


@dataclass(frozen=True, eq=False)
class Seats:
    """Where the pictures of a call sit."""

    beside: tuple[Seat, ...]
    """Rows that ride behind the sampler's, the chunks of each picture in order."""
    groups: tuple[SeatsApart, ...]
    rows: tuple[GuestRows, ...]
    _host_rows: int

    @classmethod
    def find(
        cls,
        patches: Sequence[PatchWithBank],
        layout: BatchLayout,
        moment: Moment,
        conditions: Conditions,
        x: Tensor,
        model: Any,
        prompts: Prompts,
        alone: bool,
    ) -> Seats:
        """Seats for the pictures of all patches, a row beside each chunk; `alone` keeps all of them apart."""
        beside: list[Seat] = []
        rows: list[GuestRows] = []
        apart: list[Seat] = []
        for patch, bank in patches:
            for picture in patch.pictures(moment) if isinstance(patch, ShowsPictures) else ():
                seats = _seats_of(patch, bank, picture, layout, moment, conditions, x, model, prompts)
                if alone or not all(_fits(seat, conditions, x) for seat in seats):
                    apart += seats
                else:
                    beside += seats
                    rows.append(GuestRows(patch, picture.name, len(seats)))
        return cls(tuple(beside), _groups(apart), tuple(rows), len(x))

    def seated_latents(self, x: Tensor) -> Tensor:
        return torch.cat([x, *(seat.latent for seat in self.beside)]) if self.beside else x

    def seated(self, conditions: Conditions) -> Conditions:
        return conditions.with_rows([seat.conditions for seat in self.beside], self._host_rows)


def noised(
    picture: ShownPicture | InvertedPicture, bank: FeatureBank, layout: BatchLayout, moment: Moment, model: Any
) -> Tensor:
    """The picture with the noise of a call, as the sampler would hold it: (1, channels, ...), float32."""
    if isinstance(picture, InvertedPicture):
        state = picture.state.to(layout.device, torch.float32)
        return state[:, :, None] if model.latent_format.latent_dimensions == 3 else state

    def brought() -> tuple[Tensor, Tensor]:
        return picture.clean.to(layout.device, torch.float32), picture.noise.to(layout.device, torch.float32)

    clean, noise = bank.once(("picture", picture.name, layout.device), brought)
    sigma = torch.tensor([moment.sigma])  # on the CPU: a number that is known needs no waiting for
    return model.model_sampling.noise_scaling(sigma, noise, clean)


def _seats_of(
    patch: AttentionPatch,
    bank: FeatureBank,
    picture: ShownPicture | InvertedPicture,
    layout: BatchLayout,
    moment: Moment,
    conditions: Conditions,
    x: Tensor,
    model: Any,
    prompts: Prompts,
) -> list[Seat]:
    latent = noised(picture, bank, layout, moment, model).to(x)
    prompted = prompts.of(picture, model, latent)
    same_size = latent.shape[1:] == x.shape[1:]
    seats: list[Seat] = []
    for number, chunk in enumerate(layout.chunks):
        of_chunk = conditions.row(layout.chunk_rows(number).start, len(x)).for_picture(same_size)
        if of_chunk.concat is not None:  # the picture to fill is the sampler's, and of its size
            of_chunk = replace(of_chunk, concat=nothing_to_fill(model, latent))
        own = prompted if prompted is not None and chunk.conditional else of_chunk
        seats.append(Seat(patch, picture.name, latent, own))
    return seats


def _fits(seat: Seat, conditions: Conditions, x: Tensor) -> bool:
    return seat.latent.shape[1:] == x.shape[1:] and conditions.fits(seat.conditions, len(x))


def _groups(apart: Sequence[Seat]) -> tuple[SeatsApart, ...]:
    """Rows apart, in calls of those next to each other that can stand in one."""
    groups: list[list[Seat]] = []
    for seat in apart:
        last = groups[-1][0] if groups else None
        if last is not None and _fits(seat, last.conditions, last.latent):
            groups[-1].append(seat)
        else:
            groups.append([seat])
    return tuple(SeatsApart(tuple(group)) for group in groups)
