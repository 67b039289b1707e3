"""LATENT and text sockets for the inversion nodes: what is connected, made fit, and what is reported of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..functional.masks import fit_mask
from ..reference import ReferenceTrajectory
from .inversion import Conditioning, Text, reconstruction_error
from .patching import map_model

TOKENS = 77
NOT_CHECKED = "Not checked."


def text_for(model: Any, given: Any, guidance: float, negative: Conditioning | None = None) -> Text:
    """The conditionings of an inversion: a CONDITIONING, a CLIP's empty prompt, or zeros where nothing is given.

    Without a negative, a CONDITIONING is guided away from zeros; empty text is guided nowhere, at guidance 1.
    """
    if isinstance(given, list):
        zeros = [[torch.zeros_like(context), _zero_pooled(extras)] for context, extras in given[:1]]
        return Text(given, negative or zeros, guidance)
    empty = _zeros(model) if given is None else _encode(given, "")
    return Text(empty, negative, guidance) if negative else Text(empty, empty)


def reconstruction_report(model: Any, trajectory: ReferenceTrajectory, back: Tensor, vae: Any) -> str:
    """How far pictures that were sampled back are off: of the latent, and of the picture if there is a VAE."""
    found = f"The latent comes back with a relative error of {reconstruction_error(model, trajectory, back):.2%}"
    if vae is None:
        return f"{found}."
    clean = model.model.process_latent_out(trajectory.latents[0])
    difference = vae.decode(back) - vae.decode(clean)
    error = difference.pow(2).mean().clamp_min(1e-12)
    return f"{found}, the picture with {(-10 * error.log10()).item():.1f} dB."


def match_channels(content: Tensor, style: Tensor) -> None:
    """Refuses latents of two kinds of models, and batches that do not pair, with a ValueError."""
    if content.shape[1] != style.shape[1]:
        raise ValueError(
            f"The content latent has {content.shape[1]} channels and the style latent {style.shape[1]}: they come "
            "from VAEs of different models. Encode both with one VAE."
        )
    if 1 not in (len(content), len(style)) and len(content) != len(style):
        raise ValueError(
            f"There are {len(content)} content latents and {len(style)} style latents. Give one of either, or as many "
            "of both."
        )


def masked_latent(content: Tensor, moved: Tensor, mask: Tensor | None) -> Tensor:
    """`moved` where the mask (masks, height, width) is white, the content elsewhere."""
    if mask is None:
        return moved
    if len(mask) not in (1, len(moved)):
        raise ValueError(f"There are {len(mask)} masks for {len(moved)} latents. Connect one, or one for each.")
    area = fit_mask(mask, *moved.shape[-2:], feather=True)[:, None].to(moved)
    return torch.lerp(content.to(moved).expand_as(moved), moved, area)


def _encode(clip: Any, prompt: str) -> Conditioning:
    context, pooled = clip.encode_from_tokens(clip.tokenize(prompt), return_pooled=True)
    return [[context, {"pooled_output": pooled}]]


def _zeros(model: Any) -> Conditioning:
    """Zeros in the shape of a prompt."""
    extras: dict[str, Any] = {}
    channels = getattr(model.model, "adm_channels", 0)
    if channels:
        extras["pooled_output"] = torch.zeros(1, channels - 6 * 256)  # the rest is sizes, which ComfyUI fills in
    return [[torch.zeros(1, TOKENS, map_model(model).text_width), extras]]


def _zero_pooled(extras: dict[str, Any]) -> dict[str, Any]:
    pooled = extras.get("pooled_output")
    return {} if pooled is None else {"pooled_output": torch.zeros_like(pooled)}
