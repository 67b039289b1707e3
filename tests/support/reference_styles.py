"""Reference Style on the tiny transformers, and what their calls were."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.patcher_extension
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from semblance.attention.engine.guests import ShownPicture
from semblance.attention.engine.scope import Scope
from semblance.attention.methods.reference_style import ReferenceStyle
from semblance.host.binding.model import add_patch, map_transformer

from .transformers import TransformerFamily, sample

TEXT = 7
"""Tokens of the prompts, unless a test asks for others."""


def picture(
    family: TransformerFamily, name: str = "a", size: tuple[int, int] = (8, 8), seed: int = 5, prompt: Any = None
) -> ShownPicture:
    """A reference of noise as loud as an encoded picture's, scaled as the model's latents are."""
    clean = family.latent(1, *size, seed=seed)["samples"]
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed + 100))
    return ShownPicture(name, clean, noise, prompt)


def everywhere(model: ModelPatcher, **settings: Any) -> Scope:
    return Scope(dict.fromkeys(map_transformer(model).blocks, 1.0), **settings)


def styled(model: ModelPatcher, *pictures: ShownPicture, mask: Any = None, **settings: Any) -> ModelPatcher:
    """`model` with Reference Style on it, in every block unless another scope is given."""
    scope = settings.pop("scope", None) or everywhere(model, mask=mask)
    return add_patch(model, ReferenceStyle(tuple(pictures), scope, **settings))


def sampled(family: TransformerFamily, model: ModelPatcher, size: tuple[int, int] = (8, 8), **settings: Any) -> Tensor:
    """A run of two steps of one image, whose two prompts are of one length unless `texts` says otherwise."""
    lengths = settings.pop("texts", (TEXT, TEXT))
    made = [family.conditioning(length, seed=seed) for seed, length in zip((1, 2), lengths, strict=True)]
    positive, negative = (settings.pop(name, one) for name, one in zip(("positive", "negative"), made, strict=True))
    latent = settings.pop("latent", None) or family.latent(settings.pop("images", 1), *size)
    return sample(model, positive, negative, latent, **settings)


@dataclass(eq=False)
class Call:
    """One call of `apply_model`, as the sampler asked for it."""

    x: Tensor
    sigma: Tensor
    text: Tensor
    conds: Mapping[str, Any]
    numbers: Sequence[int]
    output: Tensor


def recorded(model: ModelPatcher) -> tuple[ModelPatcher, list[Call]]:
    """A clone of `model` that writes its calls down. Patches that are added later act within what is recorded."""
    calls: list[Call] = []

    def record(
        executor: Any, x: Tensor, t: Tensor, concat: Any, text: Tensor, control: Any, options: Any, **conds: Any
    ):
        output = executor(x, t, concat, text, control, options, **conds)
        calls.append(Call(x, t, text, conds, tuple(options["cond_or_uncond"]), output))
        return output

    recording = model.clone()
    comfy.patcher_extension.add_wrapper_with_key(
        WrappersMP.APPLY_MODEL, "recorded", record, recording.model_options, True
    )
    return recording, calls


def answered(model: ModelPatcher, call: Call, rows: Iterable[int], numbers: Sequence[int]) -> Tensor:
    """What `model`, with what is on it, answers to some rows of a call; `numbers` are those of their conditionings."""
    chosen, whole = list(rows), len(call.x)
    options = {**model.model_options["transformer_options"], "cond_or_uncond": list(numbers)}
    conds = {name: some(value, whole, chosen) for name, value in call.conds.items()}
    x, t, text = (some(value, whole, chosen) for value in (call.x, call.sigma, call.text))
    with torch.inference_mode():
        return model.model.apply_model(x, t, c_crossattn=text, transformer_options=options, **conds)


def some(value: Any, whole: int, rows: Sequence[int]) -> Any:
    """Some of the rows of whatever has a row for each of the call's."""
    if isinstance(value, Tensor) and value.ndim and len(value) == whole:
        return value[list(rows)]
    return [some(part, whole, rows) for part in value] if isinstance(value, list) else value
