"""What only CALC_COND_BATCH can see: the role, crop and tag of each conditioning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...attention.engine.layout import Chunk, Crop, ImageWindow
from .carried import KEY

TAG = f"{KEY}_story"
"""The name under which an entry of a CONDITIONING keeps its tag. Saved recipes hold it too."""

Group = Sequence[dict[str, Any]] | None
"""The conditionings of one side, as ComfyUI passes them."""
Key = tuple[int, Any]
"""A conditioning: index of its side in the guider's list, and uuid."""


@dataclass(frozen=True)
class Conditionings:
    """The conditionings of one step."""

    roles: tuple[str, ...]
    uuids: frozenset[Key]
    crops: Mapping[Key, Crop]
    tags: Mapping[Key, str]
    text_tokens: Mapping[Key, int]
    """The length of each text, before ComfyUI repeats it to that of others in a call."""
    images: int
    """Images in each of them: those of the latent batch, or of a window of it."""
    window: ImageWindow | None = None

    @classmethod
    def read(
        cls, groups: Sequence[Group], named: Mapping[str, Group], x: Tensor, model_options: Mapping[str, Any]
    ) -> Conditionings:
        """Reads the sides of one step for the latents `x`; `named` are the guider's own, by role."""
        height, width = x.shape[-2:]
        roles = tuple(_role(index, group, named) for index, group in enumerate(groups))
        found = [
            ((index, cond["uuid"]), cond)
            for index, group in enumerate(groups)
            for cond in group or ()
            if "uuid" in cond
        ]
        crops = {key: clamped(cond["area"], height, width) for key, cond in found if len(cond.get("area") or ()) == 4}
        tags = {key: cond[TAG] for key, cond in found if TAG in cond}
        lengths = {key: text.cond.shape[1] for key, cond in found if (text := _text(cond)) is not None}
        uuids = frozenset(key for key, _ in found)
        return cls(roles, uuids, crops, tags, lengths, len(x), window_of(model_options))

    @property
    def looked_at(self) -> frozenset[Any]:
        """What a step looks at: roles and uuids, with the images of the batch that are shown."""
        return frozenset((self.roles[index], uuid, self.window) for index, uuid in self.uuids)

    @property
    def conditional_tags(self) -> frozenset[str]:
        """The tags of conditional sides, whether or not ComfyUI sends them in one call."""
        return frozenset(tag for (index, _), tag in self.tags.items() if Chunk(self.roles[index]).conditional)


def window_of(model_options: Mapping[str, Any]) -> ImageWindow | None:
    """The images of the batch that ComfyUI's context windows show in a step; None for the whole batch."""
    window = model_options.get("transformer_options", {}).get("context_window")
    if window is None or window.dim != 0:
        return None
    anchor = getattr(window, "causal_anchor_index", None)
    shown = [*([] if anchor is None or anchor < 0 else [anchor]), *window.index_list]
    # At these places of every window ComfyUI shows the images that have these places in the batch.
    for place in getattr(model_options.get("context_handler"), "latent_retain_index_list", ()):
        shown[place] = place % window.total_frames
    return ImageWindow(tuple(shown), window.total_frames)


def clamped(area: Sequence[int], height: int, width: int) -> Crop:
    """ComfyUI's area, cut off at the edges of the latent as ComfyUI does."""
    rows, columns, top, left = area
    return min(height - top, rows), min(width - left, columns), top, left


def _text(cond: Mapping[str, Any]) -> Any:
    return cond.get("model_conds", {}).get("c_crossattn")


def _role(index: int, group: Group, named: Mapping[str, Group]) -> str:
    for name, known in named.items():
        if known is group:
            return name
    # Context windows hand over copies. (A uuid alone would mislead: the counterpart that ComfyUI makes for an
    # area conditioning keeps the uuid of the other side.)
    uuids = {cond.get("uuid") for cond in group or ()}
    for name, known in named.items():
        if uuids and uuids == {cond.get("uuid") for cond in known or ()}:
            return name
    return ("positive", "negative")[index] if index < 2 else f"conditioning {index}"
