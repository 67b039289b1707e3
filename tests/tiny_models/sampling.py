"""What a sampler needs besides a model, and the host's own samplers as functions."""

from __future__ import annotations

from typing import Any

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .unets import CONTEXT_WIDTH, POOLED_WIDTH, Family

Conditioning = list[list[Any]]
Latent = dict[str, Tensor]


def make_conditioning(
    kind: Family = "sd15", rows: int = 1, tokens: int = 77, seed: int = 0, pooled: bool = True
) -> Conditioning:
    """One CONDITIONING entry of random text for `rows` prompts, with SDXL's pooled output unless it is left out."""
    generator = torch.Generator().manual_seed(seed)
    context = torch.randn((rows, tokens, CONTEXT_WIDTH[kind]), generator=generator)
    extras: dict[str, Any] = {}
    if kind == "sdxl" and pooled:
        extras["pooled_output"] = torch.randn((rows, POOLED_WIDTH), generator=generator)
    return [[context, extras]]


def empty_latent(images: int = 1, height: int = 16, width: int = 16) -> Latent:
    return {"samples": torch.zeros((images, 4, height, width))}


def random_latent(images: int = 1, height: int = 16, width: int = 16, seed: int = 0) -> Latent:
    """A latent as loud as an encoded picture's."""
    noise = torch.randn((images, 4, height, width), generator=torch.Generator().manual_seed(seed))
    return {"samples": 4.0 * noise}


def ksampler(
    model: ModelPatcher,
    positive: Conditioning,
    negative: Conditioning,
    latent: Latent,
    *,
    seed: int = 1,
    steps: int = 3,
    cfg: float = 5.0,
    sampler: str = "euler",
    scheduler: str = "normal",
    denoise: float = 1.0,
    add_noise: bool = True,
) -> Tensor:
    """The KSampler node's result; without added noise that of KSampler (Advanced)."""
    import nodes

    settings = (seed, steps, cfg, sampler, scheduler)
    given = (*settings, positive, negative, latent)
    (result,) = nodes.common_ksampler(model, *given, denoise=denoise, disable_noise=not add_noise)
    return result["samples"]


def sampler_custom(
    model: ModelPatcher,
    positive: Conditioning,
    negative: Conditioning,
    latent: Latent,
    sigmas: Tensor,
    *,
    seed: int = 1,
    cfg: float = 1.0,
    sampler: Any = "euler",
    add_noise: bool = False,
) -> Tensor:
    """The SamplerCustom node's result for a ladder of sigmas of one's own; `sampler` is a name or a SAMPLER."""
    from comfy_extras.nodes_custom_sampler import SamplerCustom

    sampler_object = comfy.samplers.sampler_object(sampler) if isinstance(sampler, str) else sampler
    result = SamplerCustom.execute(model, add_noise, seed, cfg, positive, negative, sampler_object, sigmas, latent)
    return result[0]["samples"]
