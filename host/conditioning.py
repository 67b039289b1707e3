"""CONDITIONING: the text of an inversion, with defaults for what is not connected, and as the UNet receives it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..attention.references.trajectory import ShownText
from .binding.model import map_unet
from .binding.noise_schedule import is_flow
from .identity import check_invertible, name_of

Conditioning = list[list[Any]]
"""Entries [context (rows, text_tokens, channels), extras such as pooled_output], the value of a CONDITIONING socket."""


@dataclass(frozen=True)
class Text:
    """The conditionings of an inversion. At guidance (CFG) 1 the negative is not used."""

    positive: Conditioning
    negative: Conditioning
    guidance: float = 1.0


def shown_text(guider: Any, images: int) -> ShownText:
    """The text of the positive conditioning, as the network receives it.

    It has one row for all images, or one for each image. Fewer prompts than images repeat in turn, as in ComfyUI: n
    prompts for n contents also serve n styles. Raises ValueError for several conditionings, an area, a mask, a timestep
    range, or no text tokens.
    """
    given = guider.conds["positive"]
    if len(given) != 1 or "area" in given[0] or "mask" in given[0]:
        raise ValueError(
            "The conditioning for an inversion must be one prompt for the whole picture. Remove Conditioning "
            "(Combine), areas and masks before Invert Image."
        )
    if for_a_part_of_the_steps(given[0]):
        raise ValueError(
            "The conditioning for an inversion holds for a part of the steps, and at the others the model would see "
            "no prompt at all. Remove ConditioningSetTimestepRange before Invert Image."
        )
    conds = given[0]["model_conds"]
    if "c_crossattn" not in conds:
        raise ValueError(
            f"This model ({name_of(guider.model_patcher)}) reads no text tokens (c_crossattn) but "
            f"{', '.join(sorted(conds)) or 'nothing'}, and an inversion keeps the tokens that it was made "
            "with. Load another model."
        )

    def rows(name: str) -> Tensor:
        cond = conds[name] if len(conds[name].cond) == 1 else conds[name].process_cond(images)
        return cond.cond.float().cpu()

    return ShownText(rows("c_crossattn"), rows("y") if "y" in conds else None, _embedded_guidance(guider, conds))


def for_a_part_of_the_steps(cond: Mapping[str, Any]) -> bool:
    """Whether a conditioning has a timestep range; one of all steps is none."""
    if "start_percent" in cond or "end_percent" in cond:
        return cond.get("start_percent", 0.0) > 0.0 or cond.get("end_percent", 1.0) < 1.0
    return "timestep_start" in cond or "timestep_end" in cond


def _embedded_guidance(guider: Any, conds: Mapping[str, Any]) -> float | None:
    """The guidance that the network reads with its text. ComfyUI gives one also to Flux schnell, which ignores it."""
    settings = getattr(guider.model_patcher.model.diffusion_model, "params", None)
    if "guidance" not in conds or not getattr(settings, "guidance_embed", True):
        return None
    return float(conds["guidance"].cond.flatten()[0])


TOKENS = 77
"""Tokens of a prompt of zeros: one block of CLIP."""


def text_for(model: Any, given: Any, guidance: float, negative: Conditioning | None = None) -> Text:
    """The conditionings of an inversion. `given` is a CONDITIONING, a CLIP for its empty prompt, or None for zeros.

    Without a negative, the negative of a CONDITIONING is zeros, and an empty prompt has guidance 1.
    """
    if isinstance(given, list):
        zeros = [[torch.zeros_like(context), _zero_pooled(extras)] for context, extras in given[:1]]
        return Text(given, negative or zeros, guidance)
    if given is None and is_flow(model):
        raise ValueError(
            f"This model ({name_of(model)}) has no text of zeros. Connect its CLIP to text, for the empty prompt, or a "
            "prompt of your own."
        )
    if given is None:
        check_invertible(model)
    empty = _zeros(model) if given is None else _encode(given, "")
    return Text(empty, negative, guidance) if negative else Text(empty, empty)


def _encode(clip: Any, prompt: str) -> Conditioning:
    return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))


def _zeros(model: Any) -> Conditioning:
    """Zeros in the shape of an encoded prompt."""
    extras: dict[str, Any] = {}
    channels = getattr(model.model, "adm_channels", 0)
    if channels:
        extras["pooled_output"] = torch.zeros(1, channels - 6 * 256)  # without the size embedding, which ComfyUI adds
    return [[torch.zeros(1, TOKENS, map_unet(model).text_width), extras]]


def _zero_pooled(extras: dict[str, Any]) -> dict[str, Any]:
    pooled = extras.get("pooled_output")
    return {} if pooled is None else {"pooled_output": torch.zeros_like(pooled)}
