"""Whether the attentions that a patch waits for came: a patch that wants to act and cannot is never passed over."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...attention.engine.call import AttentionSite
from ...attention.engine.moment import Moment
from ...attention.engine.patch import AttentionPatch


@dataclass
class Attendance:
    """Who wanted to act in a run, and who could. Patches are known by id, as their banks are."""

    called: bool = False
    """Whether the model was called as ComfyUI calls it."""
    wanted: dict[int, AttentionPatch] = field(default_factory=dict)
    met: set[int] = field(default_factory=set)
    """The patches through which an attention came."""

    def want(self, patches: Iterable[AttentionPatch]) -> None:
        self.wanted |= {id(patch): patch for patch in patches}

    def take(
        self,
        acting: Iterable[AttentionPatch],
        rehearsed: set[int],
        met: set[int],
        options: Mapping[str, Any],
        others: Callable[[], str],
    ) -> None:
        """Notes at the end of a call which of the patches that wanted to act in it met an attention."""
        self.met |= met
        if "easycache" in options:  # which never skips a first step; methods that it would mislead refuse it by name
            return
        self.want(acting)
        self.check_rehearsed(rehearsed, met, others)

    def check(self, others: Callable[[], str]) -> None:
        """Raises ValueError at the end of a step in which a patch wanted to act and has never met an attention."""
        missing = [patch for number, patch in self.wanted.items() if number not in self.met]
        if missing:
            raise ValueError(
                f"{_named(missing)} was to act in this step, but no attention of the model came through it: another "
                f"node runs the model itself, or answers in its place. {others()} Bypass that node."
            )

    def check_rehearsed(self, rehearsed: set[int], met: set[int], others: Callable[[], str]) -> None:
        """Raises ValueError for patches that met attentions in a rehearsal, but not in the call it was for."""
        missing = [patch for number, patch in self.wanted.items() if number in rehearsed - met]
        if missing:
            raise ValueError(
                f"{_named(missing)} calls the model twice on the same latents, and the second call came back without "
                f"an attention: another node answers it from the first, as a cache does. {others()} Bypass that node."
            )


def wants(patches: Sequence[AttentionPatch], sites: Sequence[AttentionSite], moment: Moment) -> list[AttentionPatch]:
    """The patches that act anywhere at a moment."""
    return [patch for patch in patches if any(patch.applies_to(site, moment) for site in sites)]


def in_time(conds: Iterable[Any], sigma: float) -> bool:
    """Whether a conditioning of a step is active at `sigma`, so that the model is called at all."""
    active = (
        float(cond.get("timestep_start", float("inf"))) >= sigma >= float(cond.get("timestep_end", 0.0))
        for group in conds
        for cond in group or ()
    )
    return any(active)


def _named(patches: Sequence[AttentionPatch]) -> str:
    return " and ".join(map(repr, patches))
