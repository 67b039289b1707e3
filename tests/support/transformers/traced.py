"""One call of a tiny transformer, and where in it the tokens of latents, text and references stand."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .families import TransformerFamily, sample
from .offered import HEIGHT, TEXT, WIDTH, Rotation
from .watched import SeenAttention, SeenCall, watched


@cache
def model_of(family: TransformerFamily) -> ModelPatcher:
    """The family's tiny model, made once for all that only look at it."""
    return family.model()


def one_call(family: TransformerFamily, noise: Tensor | None = None, tokens: int = TEXT, **more: Any) -> SeenCall:
    """What the model is asked for the prompt alone: the latents are `noise` itself."""
    text = more.pop("text", None)
    ((drawn, extras),) = family.conditioning(tokens, **more)
    model, calls = watched(model_of(family))
    prompt = [[drawn if text is None else text, extras]]
    sample(model, prompt, prompt, family.latent(1, HEIGHT, WIDTH), steps=1, cfg=1.0, noise=noise)
    return calls[0]


def drawn_noise(family: TransformerFamily, seed: int = 3, height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    return family.latent(1, height, width, seed)["samples"]


def even_noise(family: TransformerFamily) -> Tensor:
    """The same in every place, so that all tokens of the image are alike but for their places."""
    return drawn_noise(family)[..., :1, :1].expand(family.latent(1, HEIGHT, WIDTH)["samples"].shape).clone()


def changed_tokens(before: SeenAttention, after: SeenAttention) -> list[int]:
    """Which tokens have another query."""
    difference = (after.query - before.query).abs().movedim(-2, 0).flatten(1).amax(1)
    return difference.gt(1e-6 * before.query.abs().max()).nonzero().flatten().tolist()


def turns(attention: SeenAttention, first: int, second: int, pairs: str, what: str = "query") -> Tensor:
    """By which complex number each pair of channels is turned from one token to another, (head_dim / 2,)."""
    tensor = getattr(attention, what)[0]
    heads = tensor if attention.unpacked else tensor.unflatten(-1, (attention.heads, -1)).movedim(1, 0)
    real, imaginary = heads.unflatten(-1, (-1, 2)).unbind(-1) if pairs == "neighbours" else heads.chunk(2, -1)
    turned = torch.complex(real, imaginary)[0].to(torch.complex128)
    return turned[second] / turned[first]


def expected_turns(rotation: Rotation, step: Sequence[float]) -> Tensor:
    """The same by the book: frequency i of an axis of d channels is theta ** (-2 i / d)."""
    angles = [
        along * theta ** (-2.0 * torch.arange(channels // 2, dtype=torch.float64) / channels)
        for along, channels, theta in zip(step, rotation.axes, rotation.thetas, strict=True)
    ]
    return torch.exp(1j * torch.cat(angles))
