"""What only the guider's call tells: the role, crop and story of each conditioning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...attention.engine.layout import Area, Chunk
from .carried import KEY

STORY = f"{KEY}_story"
"""Under which name an entry of a conditioning says of which story it is."""


@dataclass(frozen=True)
class Conditionings:
    """What only the guider's call tells: roles by number, areas and stories by number and uuid, how many images."""

    roles: tuple[str, ...]
    areas: Mapping[tuple[int, Any], Area]
    stories: Mapping[tuple[int, Any], str]
    images: int
    """Images of the latent batch, which ComfyUI never splits."""

    @property
    def told(self) -> frozenset[str]:
        """The stories on conditional sides, whether or not the model is shown them in one call."""
        return frozenset(story for (number, _), story in self.stories.items() if Chunk(self.roles[number]).conditional)


def clamped(area: Sequence[int], height: int, width: int) -> Area:
    rows, columns, top, left = area
    return min(height - top, rows), min(width - left, columns), top, left
