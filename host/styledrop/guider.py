"""StyleDrop's guidance as ComfyUI's guider: one conditioning with the adapter, the same without it, and the negative.

With A tuned, B base and U unconditional it is A + style (A - B) + text (B - U). Other packs' functions around guidance
are called as at CFG 1 + text of the base model: they get B for the conditional side, U for the unconditional one and
the base's conditioning. What they make of these stands for B + text (B - U), and the style is added to it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.hooks
import comfy.samplers
from torch import Tensor

from ...attention.adapters.style_adapter import StyleAdapter
from ...attention.functional.two_scales import with_style
from ...attention.methods.styledrop import BASE_ROLE, StyleDrop
from ..binding.model import add_patch
from ..conditioning import Conditioning
from .applying import Scoped
from .fitting import check_blocks, check_fits
from .lora import lora_hooks

CALC = "sampler_calc_cond_batch_function"
PRE_CFG = "sampler_pre_cfg_function"
AROUND_CFG = (CALC, PRE_CFG, "sampler_cfg_function", "sampler_post_cfg_function")
"""The functions of other packs around guidance, as ComfyUI calls their places in a MODEL's options."""


@dataclass(frozen=True)
class Scales:
    """How strongly both sides of the guidance pull."""

    style: float
    """The paper's lambda_A: 0 leaves the tuned model's prediction as it is."""
    text: float
    """The paper's lambda_B: CFG less 1."""
    first_step: bool = True
    """Whether both hold at the first step too; the PyTorch port's code sets them to 0 there."""


def styledrop_guider(
    model: Any,
    adapter: StyleAdapter,
    strength: float,
    scoped: Scoped,
    scales: Scales,
    positive: Conditioning,
    negative: Conditioning | None,
) -> TwoScaleGuider:
    """A guider for MODEL with the adapter on its tuned side.

    A LoRA goes with the tuned side's conditioning as ComfyUI's hooks, so that the base keeps its weights. Raises
    ValueError if the adapter does not fit the model, and for a text scale without a negative.
    """
    if negative is None and scales.text:
        raise ValueError(
            f"The text scale is {scales.text:g}, which pushes away from a negative, and none is connected. Connect the "
            "negative prompt (an empty one will do), or set the text scale to 0."
        )
    scope = scoped(check_fits(adapter, model))
    check_blocks(adapter, scope.blocks)
    tuned, own = positive, None
    if adapter.form == "bottleneck":
        model = add_patch(model, StyleDrop(adapter.tensors, scope, strength))
    else:
        own = lora_hooks(adapter, strength, scope.blocks, scope.window)
        tuned = comfy.hooks.set_hooks_for_conditioning(positive, own)
    guider = TwoScaleGuider(model, scales, own)
    guider.set_sides(tuned, positive, negative)
    return guider


class TwoScaleGuider(comfy.samplers.CFGGuider):
    """Guides with two scales between the sides `positive`, `base` and, if there is one, `negative`."""

    def __init__(self, model: Any, scales: Scales, own: Any = None) -> None:
        super().__init__(model)
        self.scales = scales
        self.own = own
        """The adapter as hooks of the tuned side's conditioning, if it is bound to it in this way."""
        self.set_cfg(1.0 + scales.text)  # by which others tell whether a run is guided

    def set_sides(self, tuned: Conditioning, base: Conditioning, negative: Conditioning | None) -> None:
        """Takes the conditionings; `base` is `tuned` without what the adapter adds to it."""
        sides = {"positive": tuned, "negative": negative, BASE_ROLE: base}
        self.inner_set_conds({role: side for role, side in sides.items() if side is not None})

    def predict_noise(
        self, x: Tensor, timestep: Tensor, model_options: dict[str, Any] | None = None, seed: int | None = None
    ) -> Tensor:
        """The guided prediction of one step."""
        options = {} if model_options is None else model_options
        scales = self._scales_at(timestep, options)
        if self.own is not None:
            only_on(self.conds, "positive", self.own)
        tuned_side, base_side = self.conds["positive"], self.conds[BASE_ROLE]
        if not scales.style and not scales.text and not any(options.get(place) for place in AROUND_CFG):
            return comfy.samplers.calc_cond_batch(self.inner_model, [tuned_side], x, timestep, options)[0]
        negative_side = self.conds.get("negative")
        needed = options.get("disable_cfg1_optimization", False)
        if math.isclose(scales.text, 0.0) and not needed:
            negative_side = None
        if needed and negative_side is None:
            raise ValueError(
                "The sampler, or another node on the model, asks for the negative at a text scale of 0 too, and none "
                "is connected. Connect the negative prompt (an empty one will do)."
            )
        sides = [base_side, negative_side]
        tuned, found = self._asked(tuned_side, sides, x, timestep, options)
        base, cfg = found[0], 1.0 + scales.text
        for function in options.get(PRE_CFG, ()):
            given = {"input": x, "timestep": timestep, "sigma": timestep, "model_options": options}
            given |= {"conds": sides, "conds_out": found, "cond_scale": cfg, "model": self.inner_model}
            found = function(given)
        sided: dict[str, Any] = {"model_options": options, "cond": base_side, "uncond": negative_side}
        guided = comfy.samplers.cfg_function(self.inner_model, found[0], found[1], cfg, x, timestep, **sided)
        return with_style(guided, tuned, base, scales.style)

    def _asked(
        self, tuned_side: Any, sides: Sequence[Any], x: Tensor, timestep: Tensor, options: dict[str, Any]
    ) -> tuple[Tensor, list[Tensor]]:
        """What the model predicts for the tuned side, and for base and negative."""
        if CALC in options:  # which expects the two sides of CFG
            tuned = comfy.samplers.calc_cond_batch(self.inner_model, [tuned_side], x, timestep, options)[0]
            given = {"conds": sides, "input": x, "sigma": timestep, "model": self.inner_model, "model_options": options}
            return tuned, options[CALC](given)
        base_side, negative_side = sides
        # Other packs know a side by its place: 0 is conditional for them and 1 unconditional.
        order = [tuned_side, negative_side, base_side]
        tuned, negative, base = comfy.samplers.calc_cond_batch(self.inner_model, order, x, timestep, options)
        return tuned, [base, negative]

    def _scales_at(self, timestep: Tensor, options: Mapping[str, Any]) -> Scales:
        levels = None if self.scales.first_step else options.get("transformer_options", {}).get("sample_sigmas")
        begins = levels is not None and bool(timestep[0] == levels[0])
        return Scales(0.0, 0.0) if begins else self.scales


def only_on(conds: Mapping[str, Sequence[dict[str, Any]]], role: str, own: Any) -> None:
    """Leaves the hooks `own` on every conditioning of a role and on no other one; other hooks stay where they are.

    For each area of one side ComfyUI gives the others a conditioning too, and copies that side's hooks with it.
    """
    changed: dict[tuple[int, bool], Any] = {}  # what shared its hooks shares them still
    for side, those in conds.items():
        on = side == role
        for cond in those:
            hooks = cond.get("hooks")
            found = [] if hooks is None else hooks.hooks
            if all((hook in found) == on for hook in own.hooks):
                continue
            key = id(hooks), on
            if key not in changed:
                changed[key] = _with(hooks, own) if on else _without(hooks, own)
            cond["hooks"] = changed[key]


def _with(hooks: Any, own: Any) -> Any:
    return own if hooks is None else hooks.clone_and_combine(own)


def _without(hooks: Any, own: Any) -> Any:
    left = hooks.clone()
    for hook in own.hooks:
        left.remove(hook)
    return left if len(left) else None
