"""Reference Style on a MODEL."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..attention.engine.scope import ImageMask, ScheduleWindow, Scope, finite
from ..attention.families.family import ModelFamily
from ..attention.families.reference_styles import STYLE_PRESETS, StyleSettings
from ..attention.methods.reference_style import ReferenceStyle as ReferenceStylePatch
from ..attention.references.shared_style import Frequencies, Statistics
from ..host.binding.model import add_patch
from ..host.conditioning import Conditioning
from ..host.reference_style import family_for_reference, shown_pictures, style_preset
from .inputs import CATEGORY, CUSTOM, curve_input, fraction_input, missing_choice, read_curve
from .inputs import CHOICES as INPUT_CHOICES
from .parsing import parse_block_weights

AUTO = "auto"
BLOCKS = ("preset", "all", CUSTOM)
BESIDE, INSTEAD = "beside", "instead"
PRESETS = (AUTO, *(key.name for key in reversed(STYLE_PRESETS)), CUSTOM)
LARGEST_SEED = 2**64 - 1
CHOICES = {"preset": PRESETS, "blocks": BLOCKS, "curve": INPUT_CHOICES["curve"]}


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
                _preset_input(),
                fraction_input(
                    "strength",
                    1.0,
                    "How strongly the reference acts: 0 turns it off, 1 is the whole method. Values between mix the "
                    "two in each attention.",
                    step=0.05,
                ),
                _blocks_input(),
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
                io.Conditioning.Input(
                    "reference_prompt",
                    optional=True,
                    tooltip="What the reference shows, as one prompt. The model then sees the reference with its own "
                    "words, which keeps more of its content out of the images. Without it, it has the prompt of the "
                    "images.",
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
        return missing_choice(CHOICES, preset=preset, blocks=blocks, curve=curve)

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
        reference_prompt: Conditioning | None = None,
        mask: Tensor | None = None,
    ) -> io.NodeOutput:
        family = family_for_reference(model)
        settings = _settings(preset, family)
        area = None if mask is None else ImageMask(mask)
        scope = Scope(_blocks(blocks, family, settings), ScheduleWindow(start, end, read_curve(curve)), area)
        patch = ReferenceStylePatch(
            shown_pictures(model, reference, reference_prompt, reference_seed),
            scope,
            finite(strength, "The strength"),
            settings.frequencies,
            settings.statistics,
            settings.instead,
        )
        return io.NodeOutput(add_patch(model, patch))


def _preset_input() -> io.DynamicCombo.Input:
    """What the reference's tokens are made of, and where they act."""
    factor = {"min": 0.0, "max": 4.0, "step": 0.01}
    default = Frequencies()
    numbers: list[io.Input] = [
        io.Combo.Input(
            "reference_tokens",
            options=[BESIDE, INSTEAD],
            tooltip="Where the reference's tokens stand: 'beside' the images' own, as in StyleAligned; or 'instead' of "
            "them, as in Visual Style Prompting, which takes over more.",
        ),
        io.Float.Input(
            "structure",
            default=default.structure[1],
            **factor,
            tooltip="At the end of the schedule, how much the images copy where things stand in the reference (a "
            "factor of the highest rotary frequencies of its keys). 0 copies no places, 1 is plain attention; higher "
            "values copy the picture itself. No effect on SD 1.5, SDXL and SD 3.5, which rotate no keys.",
        ),
        io.Float.Input(
            "detail",
            default=default.detail[1],
            **factor,
            tooltip="At the end of the schedule, how strongly the images look at the reference at all (a factor of the "
            "lowest rotary frequencies of its keys; on SD 1.5, SDXL and SD 3.5 of all). 1 is plain attention; higher "
            "values take more of its style, far above 1 the image suffers.",
        ),
        fraction_input(
            "statistics",
            0.5,
            "How far the images' queries and keys take on the mean and deviation of the reference's (AdaIN). Higher "
            "values look at the reference more evenly and take more of its style.",
            step=0.05,
        ),
        fraction_input(
            "value_statistics",
            0.0,
            "How far the images' values take on the mean and deviation of the reference's. Higher values bring its "
            "colours and contrast in more directly.",
            step=0.05,
            advanced=True,
        ),
        io.Float.Input(
            "structure_start",
            default=default.structure[0],
            **factor,
            advanced=True,
            tooltip="The same as structure, at the beginning of the schedule; between, it changes evenly. Higher values "
            "copy more of the reference's layout, which is settled there.",
        ),
        io.Float.Input(
            "detail_start",
            default=default.detail[0],
            **factor,
            advanced=True,
            tooltip="The same as detail, at the beginning of the schedule; between, it changes evenly. Higher values "
            "take more of the reference's large areas of colour, which are settled there.",
        ),
        io.Float.Input(
            "falloff",
            default=default.falloff,
            min=0.0,
            max=100.0,
            step=0.1,
            advanced=True,
            tooltip="How many frequencies follow structure rather than detail: 0 none, 1 half of them; higher values "
            "more, up to all but the lowest.",
        ),
    ]
    return io.DynamicCombo.Input(
        "preset",
        options=[io.DynamicCombo.Option(name, numbers if name == CUSTOM else []) for name in PRESETS],
        tooltip="How the images attend to the reference. 'auto': 'StyleAligned' on SDXL and SD 1.5, 'Krea 2' on Krea "
        "2, 'Untwisting RoPE' on other transformers. 'Visual Style Prompting', for SDXL and SD 1.5, keeps the "
        "reference's content out better. 'custom' shows the numbers.",
    )


def _blocks_input() -> io.DynamicCombo.Input:
    weights = io.String.Input(
        "weights",
        default="",
        tooltip="Blocks with their weights, e.g. output.3=1.0 on a UNet, or double.0=1.0, single.7=0.5 on a "
        "transformer. A block with a higher weight follows the reference more. If a name is wrong, the error lists the "
        "right ones.",
    )
    return io.DynamicCombo.Input(
        "blocks",
        options=[io.DynamicCombo.Option(name, [weights] if name == CUSTOM else []) for name in BLOCKS],
        tooltip="The blocks whose attention looks at the reference. 'preset' takes those of the preset, all of them "
        "for 'custom' numbers; 'all' takes every block; 'custom' sets a weight for each.",
    )


def _settings(preset: dict[str, Any], family: ModelFamily) -> StyleSettings:
    """What the `preset` input means on a model."""
    if preset["preset"] != CUSTOM:
        return style_preset(family, None if preset["preset"] == AUTO else preset["preset"])
    given = {name: finite(number, name) for name, number in preset.items() if isinstance(number, float)}
    frequencies = Frequencies(
        (given["structure_start"], given["structure"]), (given["detail_start"], given["detail"]), given["falloff"]
    )
    statistics = Statistics(given["statistics"], given["value_statistics"])
    instead = preset["reference_tokens"] == INSTEAD
    return StyleSettings(family.blocks, "the user", frequencies, statistics, instead)


def _blocks(blocks: dict[str, Any], family: ModelFamily, settings: StyleSettings) -> dict[str, float]:
    """Weights by block name from the `blocks` input."""
    if blocks["blocks"] == CUSTOM:
        return parse_block_weights(blocks["weights"], family.blocks)
    return dict.fromkeys(family.blocks if blocks["blocks"] == "all" else settings.blocks, 1.0)
