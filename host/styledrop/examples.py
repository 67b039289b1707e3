"""What an adapter is tuned on: pictures as latents, each with its caption as a CONDITIONING."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_base
import comfy.sampler_helpers
import comfy.samplers
import torch
from torch import Tensor

from ..binding.model import map_model
from ..conditioning import Conditioning
from ..masked.model import MaskedModel

SIZE_WIDTH = 6 * 256
"""Channels that ComfyUI adds to the pooled text of SDXL, of the picture's size and place."""
NO_PICTURE = "There is no picture to tune on. Connect a picture, or latents with their conditionings."
SMALLEST = 8
"""The smallest side of a latent."""


UNFIT = {
    **dict.fromkeys(("control", "area", "mask", "hooks", "gligen")),
    **{"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0},
}
"""What a caption must not come with, since no step of tuning would heed it, by the value at which it does nothing."""


@dataclass(frozen=True, eq=False)
class Example:
    """One picture to learn from."""

    latent: Tensor  # (channels, height, width), as a LATENT holds it
    conditioning: Conditioning
    """Its caption: one entry, of one row."""
    mirrored: Tensor | None = None
    """The latent of its mirror image, of the same size, or None if it is not to be flipped."""

    def __post_init__(self) -> None:
        if len(self.conditioning) != 1:
            raise ValueError(
                f"A caption has {len(self.conditioning)} conditionings; expected one for the whole picture. Remove "
                "Conditioning (Combine) before Tune Style."
            )
        context, extras = self.conditioning[0]
        if context is not None and len(context) != 1:
            raise ValueError(
                f"A caption has {len(context)} prompts; expected one for each picture. Give the prompts as a list."
            )
        unfit = next((name for name in UNFIT if name in extras and extras[name] != UNFIT[name]), None)
        if unfit is not None:
            raise ValueError(
                f"A caption comes with '{unfit}', as ControlNet, areas, masks, hooks, timestep ranges and the like put "
                "it there; expected plain text. Connect CLIP Text Encode straight to Tune Style."
            )


@dataclass(frozen=True, eq=False)
class Examples:
    """All that an adapter is tuned on, and what it is to remember of it."""

    each: tuple[Example, ...]
    content_words: str = ""
    style_words: str = ""
    """The two halves of the first caption."""
    thumbnail: Tensor | None = None  # (height, width, 3) uint8, the first picture


@dataclass(frozen=True, eq=False)
class PreparedExample:
    """An example as the model takes it."""

    latent: Tensor  # (1, channels, height, width), in the model's scale, float32
    mirrored: Tensor | None
    conds: Mapping[str, Any]
    """The host's conds by the name under which `apply_model` takes them."""

    def row(self, mirrored: bool) -> Tensor:
        return self.mirrored if mirrored and self.mirrored is not None else self.latent


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows that go through the model in one call."""

    latents: Tensor  # (rows, channels, height, width)
    conditioning: Mapping[str, Any]


def prepare(model: Any, examples: Sequence[Example], device: torch.device) -> list[PreparedExample]:
    """The examples on `device`, outside of inference mode; `check_examples` has let them pass."""
    return [_prepared(model.model, example, device) for example in examples]


def check_examples(model: Any, examples: Sequence[Example]) -> None:
    """Raises ValueError unless there are pictures, large enough, of numbers, and what the model reads."""
    if not examples:
        raise ValueError(NO_PICTURE)
    channels = model.model.latent_format.latent_channels
    for example in examples:
        found = tuple(example.latent.shape)
        if len(found) != 3:
            raise ValueError(
                f"A latent has {len(found) + 1} dimensions; expected 4, of pictures. It may be of a video model: "
                "encode the pictures with the model's own VAE."
            )
        if found[0] != channels:
            raise ValueError(
                f"A latent has {found[0]} channels, but the model's have {channels}: it comes from the VAE of another "
                "kind of model. Encode the pictures with the model's own VAE."
            )
        if min(found[-2:]) < SMALLEST:
            raise ValueError(
                f"A latent is {found[-1]}x{found[-2]}; expected at least {SMALLEST}x{SMALLEST}, which are 64 pixels a "
                "side for most models. Choose a larger picture."
            )
        if not torch.isfinite(example.latent).all():
            raise ValueError(
                "A latent holds values that are not numbers (NaN or infinite). The VAE may have overflowed in fp16; "
                "encode with --fp32-vae."
            )
        check_text(model, example.conditioning)


def check_text(model: Any, conditioning: Conditioning) -> None:
    """Raises ValueError for a caption by the CLIP of another kind of model."""
    read, pooled_read = map_model(model).text_width, _pooled_width(model.model)
    (context, extras), *_ = conditioning
    pooled = extras.get("pooled_output")
    width, pooled_width = 0 if context is None else context.shape[-1], 0 if pooled is None else pooled.shape[-1]
    if width != read or (pooled_read and pooled_width != pooled_read):
        beside = f" with a pooled text of {pooled_read}" if pooled_read else ""
        found = f" and {pooled_width or 'no pooled text'}" if pooled_read else ""
        raise ValueError(
            f"The model reads text of {read} channels{beside}, but a caption has {width}{found}: it comes from the "
            "CLIP of another kind of model. Encode the captions with the model's own CLIP."
        )


def _pooled_width(base_model: Any) -> int:
    """Channels of the pooled text that a model reads, 0 if it reads none."""
    if isinstance(base_model, MaskedModel):
        return base_model.settings.pooled
    return base_model.adm_channels - SIZE_WIDTH if isinstance(base_model, comfy.model_base.SDXL) else 0


def in_calls(rows: Sequence[tuple[PreparedExample, bool]]) -> list[Rows]:
    """The rows of one step, (example, whether mirrored), in as few calls as their sizes and texts allow."""
    calls: list[list[tuple[PreparedExample, bool]]] = []
    for example, mirrored in rows:
        fitting = next((call for call in calls if _together(call[0][0], example)), None)
        if fitting is None:
            calls.append(fitting := [])
        fitting.append((example, mirrored))
    return [_joined(call) for call in calls]


def _prepared(base_model: Any, example: Example, device: torch.device) -> PreparedExample:
    def own(latent: Tensor) -> Tensor:
        # A copy made outside of inference mode is one that gradients may be taken beside.
        return base_model.process_latent_in(latent.detach().clone().float()[None]).to(device)

    latent = own(example.latent)
    (context, extras), *_ = example.conditioning
    given = comfy.sampler_helpers.convert_cond([[_copied(context), _copied(extras)]])
    noise = torch.zeros_like(latent)
    (encoded,) = comfy.samplers.encode_model_conds(base_model.extra_conds, given, noise, device, "positive")
    conds = {name: cond.process_cond(batch_size=1, area=None) for name, cond in encoded["model_conds"].items()}
    for cond in conds.values():
        cond.cond = _copied(cond.cond, device)
    mirrored = None if example.mirrored is None else own(example.mirrored)
    return PreparedExample(latent, mirrored, conds)


def _copied(value: Any, device: torch.device | None = None) -> Any:
    """A copy of all tensors in `value`, as it is held in dictionaries, lists and tuples."""
    if isinstance(value, Tensor):
        return value.detach().clone().to(device or value.device)
    if isinstance(value, dict):
        return {name: _copied(part, device) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_copied(part, device) for part in value)
    return value


def _together(one: PreparedExample, other: PreparedExample) -> bool:
    return (
        one.latent.shape == other.latent.shape
        and one.conds.keys() == other.conds.keys()
        and all(cond.can_concat(other.conds[name]) for name, cond in one.conds.items())
    )


def _joined(rows: Sequence[tuple[PreparedExample, bool]]) -> Rows:
    first, *others = (example for example, _ in rows)
    conditioning = {
        name: cond.concat([other.conds[name] for other in others]) if others else cond.cond
        for name, cond in first.conds.items()
    }
    return Rows(torch.cat([example.row(mirrored) for example, mirrored in rows]), conditioning)
