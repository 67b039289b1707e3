"""Reference Style on a MODEL."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..attention.engine.scope import ImageMask, ScheduleWindow, Scope, finite
from ..attention.methods.reference_style import ReferenceStyle as ReferenceStylePatch
from ..host.binding.model import add_patch
from ..host.conditioning import Conditioning
from ..host.reference_style import family_for_reference, shown_pictures
from .inputs import CATEGORY, LARGEST_SEED, curve_input, fraction_input, missing_choice, read_curve
from .reference_style_inputs import (
    STYLE_CHOICES,
    read_style_blocks,
    read_style_settings,
    style_blocks_input,
    style_preset_input,
)


class ReferenceStyle(io.ComfyNode):
    """Shared attention with a reference. Templates reference_style_*; help page SemblanceReferenceStyle."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SemblanceReferenceStyle",
            display_name="Reference Style",
            category=CATEGORY,
            description="Gives a model the style of a reference picture, without training and without files: while it "
            "samples, the images attend to the reference beside their own tokens. For Flux, Flux.2, Chroma, "
            "Qwen-Image, Z-Image, Lumina 2, Krea 2, Anima, Cosmos 2, Wan, SD 3.5, SDXL and SD 1.5.",
            search_aliases=[
                *("style aligned", "visual style prompting", "reference only", "untwisting rope", "style reference"),
                *("flux style", "qwen style", "z-image style", "krea style", "shared attention", "style transfer"),
            ],
            inputs=[
                io.Model.Input("model", tooltip="The model. It is not changed; a patched copy comes out."),
                io.Latent.Input(
                    "reference",
                    tooltip="The picture whose style is taken, from VAE Encode with this model's VAE; any size. Each "
                    "picture of a batch is a reference of its own: more references mix their styles, and each takes "
                    "the time of one more image.",
                ),
                style_preset_input(),
                fraction_input(
                    "strength",
                    1.0,
                    "How strongly the reference acts: 0 turns it off, 1 is the whole method. Values between mix the "
                    "two in each attention.",
                    step=0.05,
                ),
                style_blocks_input(),
                fraction_input(
                    "start",
                    0.0,
                    "When the style begins to act, as a fraction of the noise schedule (not of the steps). Higher "
                    "values begin later and leave the layout to the prompt.",
                ),
                fraction_input(
                    "end",
                    1.0,
                    "When the style stops acting, as a fraction of the noise schedule (not of the steps). Lower values "
                    "stop earlier and leave fine texture to the prompt.",
                ),
                curve_input(),
                io.Int.Input(
                    "reference_seed",
                    default=0,
                    min=0,
                    max=LARGEST_SEED,
                    advanced=True,
                    tooltip="The noise that the reference is given at each step. Another seed, higher or lower, "
                    "varies the result a little.",
                ),
                io.Int.Input(
                    "reference_weight",
                    optional=True,
                    default=1,
                    min=1,
                    max=8,
                    tooltip="How many times the reference counts beside the images' own tokens: 1 as they are, 2 as in "
                    "StyleAligned's demo for real pictures. Higher values take more of its style and make each step "
                    "slower. With 'instead' it changes nothing.",
                ),
                io.Conditioning.Input(
                    "reference_prompt",
                    optional=True,
                    tooltip="What the reference shows, as one prompt. The model then sees the reference with its own "
                    "words, which keeps more of its content out of the images. Without it, it has the prompt of the "
                    "images, of a batch of prompts the first. Beside the negative prompt it always has the negative's "
                    "words.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="The area that takes on the style, in white. One mask for all images, or one for each; any "
                    "size. Passes by tiles (Ultimate SD Upscale, detailers) take each tile for a whole picture: bypass "
                    "the mask there.",
                ),
            ],
            outputs=[io.Model.Output("model", tooltip="The model with the style on it, for any sampler and CFG.")],
        )

    @classmethod
    def validate_inputs(
        cls, model: Any = None, preset: Any = None, blocks: Any = None, curve: Any = None
    ) -> bool | str:
        # ComfyUI leaves out a choice it does not know. It wants the complaint on an input it did pass, hence `model`.
        return missing_choice(STYLE_CHOICES, preset=preset, blocks=blocks, curve=curve)

    @classmethod
    def execute(
        cls,
        model: Any,
        reference: dict[str, Any],
        preset: dict[str, Any],
        strength: float,
        blocks: dict[str, Any],
        start: float,
        end: float,
        curve: dict[str, Any],
        reference_seed: int,
        reference_weight: int = 1,
        reference_prompt: Conditioning | None = None,
        mask: Tensor | None = None,
    ) -> io.NodeOutput:
        family = family_for_reference(model)
        settings = read_style_settings(preset, family)
        area = None if mask is None else ImageMask(mask)
        scope = Scope(read_style_blocks(blocks, family, settings), ScheduleWindow(start, end, read_curve(curve)), area)
        patch = ReferenceStylePatch(
            shown_pictures(model, reference, reference_prompt, reference_seed),
            scope,
            finite(strength, "The strength"),
            settings.frequencies,
            settings.statistics,
            settings.instead,
            reference_weight,
        )
        return io.NodeOutput(add_patch(model, patch))
