"""What is known of a run before its first step, so that a patch can refuse it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import comfy.samplers
from torch import Tensor

from ...attention.engine.layout import Chunk
from ...attention.engine.moment import RunPlan
from ...attention.engine.patch import AttentionPatch
from ...attention.engine.protocols import Advises, NeedsMemory, SamplesAgain
from .conditionings import TAG
from .neighbours import others_attend, others_call
from .run import Run
from .transformer import transformer_of

TOKEN_MERGERS = {"hypertile": "HyperTile", "tomesd": "ToMe"}
"""The name of a node, by a part of the module that its patch comes from."""
SHOWN_BESIDE = {"ReferenceAdvanced": "The reference control of Advanced-ControlNet"}
"""Controls that show the model latents of their own, in further calls inside ours, by the name of their class."""


def plan_of(
    guider: Any, run: Run, sampler: Any, sigmas: Tensor, noise: Tensor, latent: Tensor, inpaints: bool
) -> RunPlan:
    """What is known of a run before its first step."""
    height, width = noise.shape[-2:]
    levels = sigmas.tolist()
    return RunPlan(
        sampler=getattr(getattr(sampler, "sampler_function", sampler), "__name__", type(sampler).__name__),
        moments=tuple(run.moment(sigma) for sigma in levels[:-1]),
        between=tuple(run.moment(sigma) for sigma in getattr(sampler, "between", _nothing_between)(levels)),
        images=len(noise),
        size=(height, width),
        inpaints=inpaints,
        conflicts=frozenset([*conflicting_nodes(guider.model_options), *_conflicting_controls(guider.conds)]),
        device_count=1 + len(guider.model_patcher.get_additional_models_with_key("multigpu")),
        guided=guides(guider),
        cropped=any(_is_for_an_area(cond) for group in guider.conds.values() for cond in group),
        channels=getattr(guider.model_patcher.model.diffusion_model, "in_channels", noise.shape[1]),
        latent_channels=noise.shape[1],
        pictures_apart=_pictures_apart(guider, noise),
        adds_noise=getattr(sampler, "adds_noise", True) and bool(noise.any()),
        takes_state=getattr(sampler, "takes_state", False),
        empty=not latent.any(),
        cfg=cfg_of(guider),
        end=levels[-1],
        tags=frozenset(
            cond[TAG]
            for role, group in guider.conds.items()
            if Chunk(role).conditional
            for cond in group
            if TAG in cond
        ),
        frames=noise.shape[2] if noise.ndim == 5 else 1,
        text_width=_text_width(guider.conds),
        rotated=getattr(transformer_of(guider.model_patcher.model), "rotary", None) is not None,
        window=_window(guider.model_options, len(noise)),
        untold_window=_untold_window(guider.model_patcher, len(noise)),
    )


def _pictures_apart(guider: Any, noise: Tensor) -> bool:
    """Whether a model has to see pictures in a call of their own: beside other packs, references or frames."""
    conds = [cond for group in guider.conds.values() for cond in group]
    options = guider.model_options["transformer_options"]
    if transformer_of(guider.model_patcher.model) is None:
        return any(map(_is_for_an_area, conds)) or others_call(guider.model_patcher, options, unet=True)
    edits = any(cond.get("reference_latents") for cond in conds)
    frames = noise.ndim == 5 and noise.shape[2] > 1
    return frames or edits or others_attend(options) or others_call(guider.model_patcher, options)


def _text_width(conds: Mapping[str, Any]) -> int | None:
    texts = [cond.get("cross_attn") for group in conds.values() for cond in group]
    return next((text.shape[-1] for text in texts if isinstance(text, Tensor)), None)


def _nothing_between(levels: Sequence[float]) -> Sequence[float]:
    """Of a SAMPLER that does not tell."""
    return ()


def check(patches: Sequence[AttentionPatch], plan: RunPlan) -> int:
    """Lets every patch refuse the run before its first step. Returns how many passes the patches need."""
    for patch in patches:
        patch.check(plan)
    return max((patch.passes(plan) for patch in patches if isinstance(patch, SamplesAgain)), default=1)


def extra_images(patches: Sequence[AttentionPatch], plan: RunPlan) -> float:
    """For how many images beside those of the run the patches need memory."""
    return sum(patch.extra_images(plan) for patch in patches if isinstance(patch, NeedsMemory))


def advice(patches: Sequence[AttentionPatch], plan: RunPlan) -> str:
    """What the user should know of the run before it starts; empty if there is nothing."""
    lines = [line for patch in patches if isinstance(patch, Advises) for line in patch.advice(plan)]
    return "\n".join(dict.fromkeys(lines))  # one node may put several patches of one window


def guides(guider: Any) -> bool:
    """Whether a guider has a negative side and, as ComfyUI's own tells by its CFG, asks the model for it."""
    return bool(guider.conds.get("negative")) and not math.isclose(getattr(guider, "cfg", 1.0), 1.0)


def cfg_of(guider: Any) -> float | None:
    """The CFG of a guider that leaves it to ComfyUI's own guidance, else None: DualCFGGuider, for one, has two."""
    own = getattr(type(guider), "predict_noise", None) is comfy.samplers.CFGGuider.predict_noise
    return float(guider.cfg) if own else None


def _is_for_an_area(cond: Mapping[str, Any]) -> bool:
    return cond.get("area") is not None or ("mask" in cond and bool(cond.get("set_area_to_bounds")))


def _window(model_options: Mapping[str, Any], images: int) -> int | None:
    """The length of the context windows that pass over the images of a batch; None without any."""
    handler = model_options.get("context_handler")
    if handler is None or getattr(handler, "dim", 0) != 0:
        return None
    length = getattr(handler, "context_length", 1)
    return length if length < images else None


def _untold_window(model: Any, images: int) -> int | None:
    """The length of AnimateDiff-Evolved's contexts, where they are shorter than the batch."""
    contexts = getattr(model.get_attachment("ADE_params"), "context_options", None)
    length = getattr(contexts, "context_length", None)
    return length if length is not None and length < images else None


def conflicting_nodes(model_options: Mapping[str, Any]) -> list[str]:
    """The names of nodes on the same model that change the UNet's tokens, or skip its calls."""
    options = model_options["transformer_options"]
    found = [_cache(options["easycache"])] if "easycache" in options else []
    inputs = options.get("patches", {}).get("attn1_patch", ())
    makers = {getattr(patch, "__module__", "") + "." + getattr(patch, "__qualname__", "") for patch in inputs}
    return found + [name for part, name in TOKEN_MERGERS.items() if any(part in maker for maker in makers)]


def _conflicting_controls(conds: Mapping[str, Any]) -> list[str]:
    """The names of controls on the conditionings that show the model more than the sampler's rows."""
    controls = [cond.get("control") for group in conds.values() for cond in group]
    found: list[str] = []
    while controls := [control for control in controls if control is not None]:
        found += [SHOWN_BESIDE[name] for one in controls if (name := type(one).__name__) in SHOWN_BESIDE]
        controls = [getattr(control, "previous_controlnet", None) for control in controls]
    return found


def _cache(holder: Any) -> str:
    """EasyCache and LazyCache leave their marks under one name."""
    return "LazyCache" if "Lazy" in type(holder).__name__ else "EasyCache"
