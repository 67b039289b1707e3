"""Small attention patches that use one thing of the engine each, so that a law can be tried on every kind of method.

All of them treat conditional rows and the others differently, so that a row taken for the wrong side shows.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from semblance.attention.engine.bank import FeatureBank
from semblance.attention.engine.call import AttentionCall, AttentionKind, AttentionSite
from semblance.attention.engine.guests import Guest
from semblance.attention.engine.layout import BatchLayout
from semblance.attention.engine.moment import Moment
from semblance.attention.engine.patch import Attend, AttentionPatch
from semblance.attention.engine.scope import Scope


@dataclass(frozen=True, eq=False)
class ToyPatch(AttentionPatch):
    """Where and how strongly; what is left to the toys."""

    scope: Scope
    strength: float = 1.0
    kinds: tuple[AttentionKind, ...] = ("self", "cross")

    def applies_to(self, site: AttentionSite, moment: Moment) -> bool:
        return site.kind in self.kinds and self.weight(site, moment) != 0

    def weight(self, site: AttentionSite, moment: Moment) -> float:
        return self.strength * self.scope.weight(site, moment)

    def __repr__(self) -> str:
        return f"{type(self).__name__}, strength {self.strength:g}, {self.scope}"


@dataclass(frozen=True, eq=False, repr=False)
class Sharpen(ToyPatch):
    """Edits inputs: longer queries on conditional rows, shorter ones on the others."""

    def edit_inputs(self, call: AttentionCall, bank: FeatureBank) -> AttentionCall:
        weight = 0.4 * self.weight(call.site, call.moment)
        return replace(call, query=call.query * (1 + weight * signs(call)))


@dataclass(frozen=True, eq=False, repr=False)
class ShareKeys(ToyPatch):
    """Edits inputs: in self-attention, every image of a chunk also sees the keys of the chunk's other images."""

    kinds: tuple[AttentionKind, ...] = ("self",)

    def edit_inputs(self, call: AttentionCall, bank: FeatureBank) -> AttentionCall:
        weight = self.weight(call.site, call.moment)
        key, value = (shared(tokens, call.layout) for tokens in (call.key, call.value * (1 + 0.1 * signs(call))))
        own = key.shape[1] - call.key.shape[1]
        return replace(call, key=torch.cat([call.key, weight * key[:, -own:]], 1) if own else call.key, value=value)


@dataclass(frozen=True, eq=False, repr=False)
class LookAway(ToyPatch):
    """Edits output: adds what the queries find when they look the other way, or on the other side takes it off."""

    def edit_output(self, call: AttentionCall, output: Tensor, attend: Attend, bank: FeatureBank) -> Tensor:
        away = attend(call.query, -call.key, call.value)
        return output + 0.3 * self.weight(call.site, call.moment) * signs(call) * away


@dataclass(frozen=True, eq=False, repr=False)
class Echo(ToyPatch):
    """Uses the bank: adds what came out here at the step before; several entries of one role are summed."""

    def edit_output(self, call: AttentionCall, output: Tensor, attend: Attend, bank: FeatureBank) -> Tensor:
        layout = call.layout
        weight = self.weight(call.site, call.moment)
        echoed: list[Tensor] = []
        for chunk, own in zip(layout.chunks, output[: layout.host_rows].split(layout.images), strict=True):
            now, before = ((call.site, chunk, step) for step in (call.moment.step, call.moment.step - 1))
            bank.remember(now, bank.recall(now) + own if now in bank else own)
            echoed.append(own + weight * bank.recall(before) if before in bank else own)
        return torch.cat([*echoed, output[layout.host_rows :]])


@dataclass(frozen=True, eq=False, repr=False)
class Visit(ToyPatch):
    """Adds guest rows and reads them: every row of the sampler's gets the mean of what came out for the guests."""

    kinds: tuple[AttentionKind, ...] = ("self",)
    visitors: tuple[Guest, ...] = ()

    def guests(self, layout: BatchLayout, moment: Moment, bank: FeatureBank) -> Sequence[Guest]:
        return self.visitors

    def edit_output(self, call: AttentionCall, output: Tensor, attend: Attend, bank: FeatureBank) -> Tensor:
        seen = [output[call.layout.guest_rows(self, guest.name)].mean(dim=(0, 1)) for guest in self.visitors]
        rows = call.layout.host_rows
        gift = self.weight(call.site, call.moment) * signs(call)[:rows] * torch.stack(seen).mean(dim=0)
        return torch.cat([output[:rows] + gift, output[rows:]])


@dataclass(frozen=True, eq=False, repr=False)
class Watch(Visit):
    """Brings guests and only writes down what comes out for them, and for the sampler's rows."""

    guests_seen: list[Tensor] = field(default_factory=list)
    host_seen: list[Tensor] = field(default_factory=list)

    def edit_output(self, call: AttentionCall, output: Tensor, attend: Attend, bank: FeatureBank) -> Tensor:
        rows = call.layout.host_rows
        self.guests_seen.append(output[rows:])
        self.host_seen.append(output[:rows])
        return output


@dataclass(frozen=True, eq=False, repr=False)
class Blinker(ToyPatch):
    """Restricts attention with an additive mask to the first half of the keys."""

    def edit_inputs(self, call: AttentionCall, bank: FeatureBank) -> AttentionCall:
        tokens = call.key.shape[1]
        mask = call.query.new_zeros(1, 1, 1, tokens)
        mask[..., tokens // 2 :] = torch.finfo(mask.dtype).min / 2
        return replace(call, mask=mask)


@dataclass(frozen=True, eq=False, repr=False)
class Halve(ToyPatch):
    """Keeps only the first half of the keys: what `Blinker` should come to, without a mask."""

    def edit_inputs(self, call: AttentionCall, bank: FeatureBank) -> AttentionCall:
        half = call.key.shape[1] // 2
        return replace(call, key=call.key[:, :half], value=call.value[:, :half])


@dataclass(frozen=True, eq=False, repr=False)
class Diary(ToyPatch):
    """Writes down every moment it acts in, and how strongly; changes nothing."""

    moments: list[Moment] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    layouts: list[BatchLayout] = field(default_factory=list)
    banks: list[weakref.ref[FeatureBank]] = field(default_factory=list)

    def guests(self, layout: BatchLayout, moment: Moment, bank: FeatureBank) -> Sequence[Guest]:
        self.moments.append(moment)
        self.weights.append(self.scope.weight(AttentionSite("cross", "output", 5), moment))
        self.banks.append(weakref.ref(bank))
        bank.remember(len(self.banks), torch.zeros(1))
        return ()

    def edit_output(self, call: AttentionCall, output: Tensor, attend: Attend, bank: FeatureBank) -> Tensor:
        self.layouts.append(call.layout)
        return output


def signs(call: AttentionCall) -> Tensor:
    """1 for conditional rows, -1 for the sampler's others, 0 for guests, (rows, 1, 1)."""
    layout = call.layout
    host = [1.0 if conditional else -1.0 for conditional in layout.conditional for _ in range(layout.images)]
    guests = [0.0] * (layout.rows - layout.host_rows)
    return torch.tensor([*host, *guests]).to(call.query).reshape(-1, 1, 1)


def shared(tokens: Tensor, layout: BatchLayout) -> Tensor:
    """Tokens of each image, then those of the chunk's other images; a guest's own, as often."""
    chunks = tokens[: layout.host_rows].unflatten(0, (len(layout.chunks), layout.images))
    turned = [chunks.roll(-turn, dims=1) for turn in range(layout.images)]  # each image's own tokens come first
    host = torch.cat(turned, dim=2).flatten(0, 1)
    return torch.cat([host, tokens[layout.host_rows :].repeat(1, layout.images, 1)])
