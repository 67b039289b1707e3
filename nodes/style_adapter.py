"""Style adapters, tuned by Tune Style: on a model, and in a guider."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..attention.adapters.style_adapter import StyleAdapter
from ..attention.engine.scope import ImageMask, ScheduleWindow, Scope, finite
from ..host.conditioning import Conditioning
from ..host.styledrop.applying import apply_adapter
from ..host.styledrop.guider import Scales, styledrop_guider
from . import sockets
from .inputs import (
    CATEGORY,
    adapter_blocks_input,
    curve_input,
    fraction_input,
    missing_choice,
    read_adapter_blocks,
    read_curve,
)


def adapter_input() -> io.Input:
    """A tuned style."""
    return sockets.StyleAdapter.Input("style_adapter", tooltip="The style, from Tune Style or Load Style Adapter.")


def strength_input() -> io.Float.Input:
    """How strongly an adapter acts."""
    return io.Float.Input(
        "strength",
        default=1.0,
        min=-2.0,
        max=3.0,
        step=0.05,
        tooltip="How strongly the style acts: 0 turns it off, 1 is as tuned. Higher values show more of it, but far "
        "above 1 the image suffers.",
    )


def window_inputs() -> list[io.Input]:
    """When an adapter acts."""
    return [
        fraction_input(
            "start",
            0.0,
            "When the style begins to act, as a fraction of the noise schedule (not of the steps). Higher values leave "
            "the layout to the prompt.",
        ),
        fraction_input(
            "end",
            1.0,
            "When the style stops acting, as a fraction of the noise schedule (not of the steps). Lower values leave "
            "fine texture to the prompt.",
        ),
    ]


class ApplyStyleAdapter(io.ComfyNode):
    """StyleDrop (arXiv:2306.00983), its adapter. Help page SemblanceApplyStyleAdapter."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SemblanceApplyStyleAdapter",
            display_name="Apply Style Adapter",
            category=CATEGORY,
            description="Gives a model a style that Tune Style learned from a picture, for any sampler. Write the "
            "style's words into the prompt. Chain several, or other methods, before or after.",
            search_aliases=["styledrop", "style lora", "apply style", "tuned style", "style tuner"],
            inputs=[
                io.Model.Input("model", tooltip="A model of the adapter's family. It is not changed."),
                adapter_input(),
                strength_input(),
                adapter_blocks_input(),
                *window_inputs(),
                curve_input(),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="The area where the style applies, in white. One mask, or one for each image of the batch; "
                    "any size. Not for a LoRA. Passes by tiles (Ultimate SD Upscale, detailers) take each tile for a "
                    "whole picture: bypass the mask there.",
                ),
            ],
            outputs=[io.Model.Output("model", tooltip="The model with the style on it, for any sampler.")],
        )

    @classmethod
    def validate_inputs(cls, model: Any = None, blocks: Any = None, curve: Any = None) -> bool | str:
        # ComfyUI leaves out a choice it does not know. It wants the complaint on an input it did pass, hence `model`.
        return missing_choice(blocks=blocks, curve=curve)

    @classmethod
    def execute(
        cls,
        model: Any,
        style_adapter: StyleAdapter,
        strength: float,
        blocks: dict[str, Any],
        start: float,
        end: float,
        curve: dict[str, Any],
        mask: Tensor | None = None,
    ) -> io.NodeOutput:
        window = ScheduleWindow(start, end, read_curve(curve))
        area = None if mask is None else ImageMask(mask)
        strength = finite(strength, "The strength")
        return io.NodeOutput(
            apply_adapter(
                model, style_adapter, strength, lambda known: Scope(read_adapter_blocks(blocks, known), window, area)
            )
        )


class StyleDropGuider(io.ComfyNode):
    """StyleDrop (arXiv:2306.00983), eq. 3. Help page SemblanceStyleDropGuider."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SemblanceStyleDropGuider",
            display_name="StyleDrop Guider",
            category=CATEGORY,
            description="Guides a sampler by two scales: one pulls towards a tuned style, one towards the prompt. The "
            "model is asked three times a step: with the style, without it, and for the negative. For "
            "SamplerCustomAdvanced.",
            search_aliases=["styledrop", "cfg guider", "style guidance", "dual cfg", "two scale guidance"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="A model of the adapter's family, without this adapter on it. It is not changed."
                ),
                adapter_input(),
                io.Conditioning.Input("positive", tooltip="The prompt, with the words of the style in it."),
                io.Float.Input(
                    "style_scale",
                    default=1.0,
                    min=0.0,
                    max=20.0,
                    step=0.1,
                    round=0.01,
                    tooltip="The paper's lambda A. 0 takes the tuned model as it is; higher values push further from "
                    "what the model made before it was tuned, towards the style.",
                ),
                io.Float.Input(
                    "text_scale",
                    default=6.5,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="The paper's lambda B, which is CFG less 1: 6.5 is CFG 7.5. Higher values follow the "
                    "prompt more and the style less. At 0 the negative is not used, unless a sampler such as "
                    "euler_cfg_pp or another node on the model asks for it.",
                ),
                strength_input(),
                adapter_blocks_input(),
                *window_inputs(),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="What to avoid; an empty prompt will do. Needed unless the text scale is 0 and no sampler "
                    "such as euler_cfg_pp asks for it.",
                ),
                io.Boolean.Input(
                    "scale_first_step",
                    default=True,
                    optional=True,
                    advanced=True,
                    tooltip="Off: both scales are 0 at the first step, as in the PyTorch port of StyleDrop, whose "
                    "models paint by tokens. On is right for models that denoise.",
                ),
            ],
            outputs=[io.Guider.Output("guider", tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def validate_inputs(cls, model: Any = None, blocks: Any = None) -> bool | str:
        return missing_choice(blocks=blocks)

    @classmethod
    def execute(
        cls,
        model: Any,
        style_adapter: StyleAdapter,
        positive: Conditioning,
        style_scale: float,
        text_scale: float,
        strength: float,
        blocks: dict[str, Any],
        start: float,
        end: float,
        negative: Conditioning | None = None,
        scale_first_step: bool = True,
    ) -> io.NodeOutput:
        scales = Scales(finite(style_scale, "The style scale"), finite(text_scale, "The text scale"), scale_first_step)
        window = ScheduleWindow(start, end)
        return io.NodeOutput(
            styledrop_guider(
                model,
                style_adapter,
                finite(strength, "The strength"),
                lambda known: Scope(read_adapter_blocks(blocks, known), window),
                scales,
                positive,
                negative,
            )
        )
