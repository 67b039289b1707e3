"""Pictures that patches show the model: noised to the level of the call, beside the sampler's rows or before them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
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

    @property
    def form(self) -> Any:
        """What must be equal for two rows to stand in one call."""
        return self.latent.shape[1:], self.conditions.form


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

    def behind(self, x: Tensor) -> Tensor:
        """The sampler's latents, and those that ride."""
        return torch.cat([x, *(seat.latent for seat in self.beside)]) if self.beside else x


@dataclass(frozen=True, eq=False)
class ModelCall:
    """One call of a transformer, as the sampler made it."""

    layout: BatchLayout
    moment: Moment
    conditions: Conditions
    x: Tensor
    model: Any
    prompts: Prompts

    def seats(self, patches: Sequence[PatchWithBank], alone: bool) -> Seats:
        """Seats for the pictures of all patches, a row beside each chunk; `alone` keeps all of them apart."""
        beside: list[Seat] = []
        rows: list[GuestRows] = []
        apart: list[Seat] = []
        for patch, bank in patches:
            for picture in patch.pictures(self.moment) if isinstance(patch, ShowsPictures) else ():
                seats = self._seats_of(patch, bank, picture)
                if alone or any(seat.form != self._form for seat in seats):
                    apart += seats
                else:
                    beside += seats
                    rows.append(GuestRows(patch, picture.name, len(seats)))
        # Rows next to each other that can stand in one call go in one.
        groups = (SeatsApart(tuple(group)) for _, group in groupby(apart, key=lambda seat: seat.form))
        return Seats(tuple(beside), tuple(groups), tuple(rows))

    def with_seats(self, seats: Seats) -> Conditions:
        """What the model is given for the sampler's rows and those that ride."""
        return self.conditions.with_rows([seat.conditions for seat in seats.beside], len(self.x))

    def _seats_of(
        self, patch: AttentionPatch, bank: FeatureBank, picture: ShownPicture | InvertedPicture
    ) -> list[Seat]:
        latent = noised(picture, bank, self.layout, self.moment, self.model).to(self.x)
        given = [row.for_picture(latent.shape[1:] == self.x.shape[1:]) for row in self._rows_of_chunks]
        if given[0].concat is not None:  # the picture to fill is the sampler's, and of its size
            nothing = nothing_to_fill(self.model, latent)
            given = [replace(row, concat=nothing) for row in given]
        if (prompted := self.prompts.of(picture, self.model, latent)) is not None:
            pairs = zip(self.layout.chunks, given, strict=True)
            own = prompted.for_picture(same_size=True)
            given = [own.completed_by(row) if chunk.conditional else row for chunk, row in pairs]
        return [Seat(patch, picture.name, latent, row) for row in given]

    @cached_property
    def _rows_of_chunks(self) -> list[Conditions]:
        """What the model is given for the first row of each chunk."""
        firsts = (self.layout.chunk_rows(number).start for number in range(len(self.layout.chunks)))
        return [self.conditions.row(first, len(self.x)) for first in firsts]

    @cached_property
    def _form(self) -> Any:
        """What a row must be equal in to stand beside the sampler's."""
        return self.x.shape[1:], self._rows_of_chunks[0].form


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
