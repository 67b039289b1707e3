"""The attention maps of a run's last steps, which travel with its LATENT to a sampler that goes on from there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor

from ..engine.bank import FeatureBank
from .maps import SubjectMaps
from .words import SubjectWords

CARRIED = "subject maps"
"""How the names of the findings begin."""
PARTS = ("sums", "layers")


def carried_maps(words: SubjectWords, maps: SubjectMaps, steps: int) -> dict[str, Tensor]:
    """The findings by which another run can go on after `steps`; none if no map was seen."""
    sums, layers = maps.last(steps)
    if sums is None:
        return {}
    return {_name(part, words): tensor for part, tensor in zip(PARTS, (sums.cpu(), layers), strict=True)}


def take_carried_maps(found: Mapping[str, Tensor], words: SubjectWords, bank: FeatureBank) -> bool:
    """Keeps what an earlier run found of the same story. Returns whether there was anything."""
    parts = [found.get(_name(part, words)) for part in PARTS]
    if any(part is None for part in parts):
        return False
    bank.remember(CARRIED, tuple(cast("list[Tensor]", parts)))
    return True


def continue_maps(maps: SubjectMaps, pass_number: int, device: torch.device | None, bank: FeatureBank) -> None:
    """Makes what was taken the steps before the first of this pass, once."""
    if CARRIED in bank and (CARRIED, pass_number) not in bank:
        sums, layers = bank.recall_all(CARRIED)
        maps.continue_from(sums.to(device), layers)
        bank.remember((CARRIED, pass_number), ())


def _name(part: str, words: SubjectWords) -> str:
    return f"{CARRIED} ({part}) of {words.text}"
