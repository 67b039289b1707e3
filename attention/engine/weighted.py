"""Methods that act at a strength of the user's, where and when a scope says."""

from __future__ import annotations

from .call import AttentionSite
from .moment import Moment
from .patch import AttentionPatch
from .scope import Scope


class Weighted(AttentionPatch):
    """What such methods have in common."""

    scope: Scope
    strength: float
    """0 turns the method off, 1 is the whole of it."""

    def _weight(self, site: AttentionSite, moment: Moment) -> float:
        return self.strength * self.scope.weight(site, moment)
