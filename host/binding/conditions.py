"""What a model call is given beside latents and noise levels, as rows that can be taken out and joined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import comfy.sampler_helpers
import comfy.samplers
import torch
from torch import Tensor

from ...attention.engine.guests import InvertedPicture, ShownPicture
from .guests import Control, with_empty_control

REFERENCES = ("ref_", "siglip_")
"""How the names begin under which editing models get pictures, and what goes with them."""
OF_THE_SAMPLER = ("denoise_mask", "concat_mask")
"""Names of what says which part of the sampler's own picture is known."""
BESIDE_TEXT = ("guidance",)
"""Names of what a prompt may leave to that of the images."""


@dataclass(frozen=True, eq=False)
class Conditions:
    """The arguments of APPLY_MODEL from `c_concat` on, without the options."""

    concat: Tensor | None
    text: Tensor | None
    control: Control
    named: Mapping[str, Any]
    """Of every family its own: pooled text, guidance, masks, reference latents, ..."""

    def call(self, executor: Any, x: Tensor, t: Tensor, options: dict[str, Any]) -> Tensor:
        return executor(x, t, self.concat, self.text, self.control, options, **self.named)

    def row(self, number: int, rows: int) -> Conditions:
        """Those of one of `rows` rows, without control: it is no part of what a row is."""
        named = {name: _row(value, number, rows) for name, value in self.named.items()}
        return Conditions(_row(self.concat, number, rows), _row(self.text, number, rows), None, named)

    def for_picture(self, same_size: bool) -> Conditions:
        """These without what is the sampler's picture's own: references to edit, and what of it is known.

        A picture of another size goes without a mask of every token by every token too, as Redux makes one.
        """
        named = {
            name: value
            for name, value in self.named.items()
            if not name.startswith(REFERENCES) and name not in OF_THE_SAMPLER
            if same_size or name != "attention_mask" or value.ndim < 3
        }
        return replace(self, named=named)

    def completed_by(self, other: Conditions) -> Conditions:
        """These with what a prompt may leave to another, where they leave it, and with the picture the other fills."""
        left = {name: other.named[name] for name in BESIDE_TEXT if name in other.named and name not in self.named}
        return replace(self, concat=other.concat, named={**self.named, **left})

    @property
    def form(self) -> Any:
        """Of one row: what must be equal for two rows to stand in one call, shapes and whatever is no tensor."""
        named = {name: _shape(value) for name, value in self.named.items()}
        return _shape(self.concat), _shape(self.text), named

    def with_rows(self, others: Sequence[Conditions], rows: int) -> Conditions:
        """These, of so many rows, with others of one row each behind; no control acts on them."""
        if not others:
            return self
        joined = join_conditions([self.row(number, rows) for number in range(rows)] + list(others))
        return replace(joined, control=with_empty_control(self.control, rows, len(others)))


def join_conditions(rows: Sequence[Conditions]) -> Conditions:
    """Conditions of one row each as those of one call."""
    named = {name: _joined([row.named[name] for row in rows]) for name in rows[0].named}
    return Conditions(_joined([row.concat for row in rows]), _joined([row.text for row in rows]), None, named)


class Prompts:
    """The prompts of pictures as the host gives them to a model; each is made once a run."""

    def __init__(self) -> None:
        self._made: dict[tuple[int, torch.Size, torch.device], Conditions] = {}

    def of(self, picture: ShownPicture | InvertedPicture, model: Any, like: Tensor) -> Conditions | None:
        """For one picture (1, channels, ...) like this; None if it has no prompt of its own."""
        if isinstance(picture, InvertedPicture) or picture.prompt is None:
            return None
        key = id(picture), like.shape, like.device
        if key not in self._made:
            self._made[key] = _encoded(model, picture.prompt, like)
        return self._made[key]

    def clear(self) -> None:
        self._made.clear()


def _encoded(model: Any, prompt: Any, like: Tensor) -> Conditions:
    converted = comfy.sampler_helpers.convert_cond(prompt)[:1]
    encoded = comfy.samplers.encode_model_conds(
        model.extra_conds, converted, like, like.device, "positive", latent_image=torch.zeros_like(like)
    )
    named = {
        name: _on(cond.process_cond(batch_size=1, area=None).cond, like.device)
        for name, cond in encoded[0]["model_conds"].items()
        if name not in BESIDE_TEXT or name in converted[0]
    }
    return Conditions(named.pop("c_concat", None), named.pop("c_crossattn", None), None, named)


def nothing_to_fill(model: Any, like: Tensor) -> Tensor | None:
    """What a model that fills, edits or animates is given beside latents of which nothing is known; None for others."""
    return model.concat_cond(noise=like, device=like.device, latent_image=torch.zeros_like(like))


def _row(value: Any, number: int, rows: int) -> Any:
    if isinstance(value, Tensor):
        return value[number : number + 1] if value.ndim and len(value) == rows else value
    if isinstance(value, list):
        return [_row(part, number, rows) for part in value]
    return value


def _joined(values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, Tensor):
        return torch.cat([value.to(first) for value in values]) if first.ndim else first
    if isinstance(first, list):
        return [_joined(parts) for parts in zip(*values, strict=True)]
    return first


def _shape(value: Any) -> Any:
    if isinstance(value, Tensor):
        return tuple(value.shape)
    return [_shape(part) for part in value] if isinstance(value, list) else value


def _on(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    return [_on(part, device) for part in value] if isinstance(value, list) else value
