"""Values sampled from a model's weights, by which files of one checkpoint are known whatever they are stored in."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

FORMAT = "samples.1 "
"""What the text of samples begins with. Files of version 0.1 have a digest of 16 hexadecimal digits in its place."""
TOLERANCE = 0.05
"""Relative distance within which weights are the same: fp8 brings about 0.03, a merge much more."""
ROUNDINGS = 2.0
"""The same for weights stored coarser than fp8, in the relative error that their storage brings."""
SCHEDULE_TOLERANCE = 0.01


@dataclass(frozen=True, eq=False)
class GroupSamples:
    """Values of a few weights that lie together, such as those of one block's self-attention."""

    shapes: tuple[tuple[int, ...], ...]
    values: Tensor | None
    """(values,) float16; None where a weight could not be read."""
    rounding: float = 0.0
    """The relative error that the storage of the weights may have brought."""

    def is_same(self, other: GroupSamples) -> bool:
        if self.shapes != other.shapes:
            return False
        if self.values is None or other.values is None:
            return True
        mine, theirs = self.values.float(), other.values.float()
        if len(mine) != len(theirs):
            return False
        size = max(_norm(mine), _norm(theirs), 1e-12)
        return _norm(mine - theirs) / size <= max(TOLERANCE, ROUNDINGS * self.rounding, ROUNDINGS * other.rounding)


@dataclass(frozen=True, eq=False)
class WeightSamples:
    """What identifies the weights and the noise schedule of a model."""

    groups: Mapping[str, GroupSamples]
    schedule: tuple[float, ...]
    """Some noise levels (sigmas) of the model's schedule."""

    def is_same(self, other: WeightSamples) -> bool:
        """Whether both are of one checkpoint, though perhaps in files of different precision."""
        if self.groups.keys() != other.groups.keys() or len(self.schedule) != len(other.schedule):
            return False
        levels = zip(self.schedule, other.schedule, strict=True)
        return all(math.isclose(mine, theirs, rel_tol=SCHEDULE_TOLERANCE) for mine, theirs in levels) and all(
            group.is_same(other.groups[name]) for name, group in self.groups.items()
        )

    def text(self) -> str:
        groups = {
            name: {"shapes": group.shapes, "values": _encoded(group.values), "rounding": round(group.rounding, 4)}
            for name, group in self.groups.items()
        }
        return FORMAT + json.dumps({"schedule": self.schedule, "groups": groups}, separators=(",", ":"))

    @classmethod
    def read(cls, text: str) -> WeightSamples | None:
        """Samples from their text, or None for a digest. Raises ValueError for a damaged text."""
        if not text.startswith(FORMAT):
            return None
        try:
            described = json.loads(text.removeprefix(FORMAT))
            groups = {name: _group(entry) for name, entry in described["groups"].items()}
            return cls(groups, tuple(map(float, described["schedule"])))
        except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as fault:
            raise ValueError("the samples of its model's weights cannot be read") from fault


def _norm(values: Tensor) -> float:
    return math.sqrt(float(values.square().sum()))


def _group(described: Mapping[str, Any]) -> GroupSamples:
    shapes = tuple(tuple(map(int, shape)) for shape in described["shapes"])
    return GroupSamples(shapes, _decoded(described["values"]), float(described["rounding"]))


def _encoded(values: Tensor | None) -> str:
    """The bits of float16 values: the same on every machine, as little-endian numbers."""
    if values is None:
        return ""
    bits = cast(list[int], values.half().view(torch.int16).tolist())  # pyright: ignore[reportUnknownMemberType]
    return base64.b64encode(b"".join(number.to_bytes(2, "little", signed=True) for number in bits)).decode()


def _decoded(text: str) -> Tensor | None:
    if not text:
        return None
    raw = base64.b64decode(text, validate=True)
    bits = [int.from_bytes(raw[place : place + 2], "little", signed=True) for place in range(0, len(raw), 2)]
    return torch.tensor(bits, dtype=torch.int16).view(torch.float16)
