"""Inputs of Reference Style, and how they read: the preset or its numbers, and the blocks."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..attention.engine.scope import finite
from ..attention.families.family import ModelFamily
from ..attention.families.reference_styles import STYLE_PRESETS, StyleSettings
from ..attention.references.shared_style import Frequencies, Statistics
from ..host.reference_style import style_preset
from .inputs import CHOICES, CUSTOM, fraction_input
from .parsing import parse_block_weights

AUTO = "auto"
BESIDE, INSTEAD = "beside", "instead"
PRESETS = (AUTO, *(key.name for key in reversed(STYLE_PRESETS)), CUSTOM)
BLOCKS = ("preset", "all", CUSTOM)
STYLE_CHOICES = {"preset": PRESETS, "blocks": BLOCKS, "curve": CHOICES["curve"]}


def style_preset_input() -> io.DynamicCombo.Input:
    """What the reference's tokens are made of, and where they act."""
    numbers = [*_numbers(), *_advanced_numbers()]
    return io.DynamicCombo.Input(
        "preset",
        options=[io.DynamicCombo.Option(name, numbers if name == CUSTOM else []) for name in PRESETS],
        tooltip="How the images attend to the reference. 'auto': 'StyleAligned' on SDXL and SD 1.5, 'Krea 2' on Krea "
        "2, 'Untwisting RoPE' on other transformers. 'Visual Style Prompting', for SDXL and SD 1.5, keeps the "
        "reference's content out better. 'custom' begins with the numbers of 'Untwisting RoPE'.",
    )


def _numbers() -> list[io.Input]:
    """Those of 'custom' that come first."""
    default = Frequencies()
    return [
        io.Combo.Input(
            "reference_tokens",
            options=[BESIDE, INSTEAD],
            tooltip="Where the reference's tokens stand: 'beside' the images' own, as in StyleAligned; or 'instead' of "
            "them, as in Visual Style Prompting, which takes over more.",
        ),
        _factor_input(
            "structure",
            default.structure[1],
            "At the end of the schedule, how much the images copy where things stand in the reference (a "
            "factor of the highest rotary frequencies of its keys). 0 copies no places, 1 is plain attention; higher "
            "values copy the picture itself. No effect on SD 1.5, SDXL and SD 3.5, which rotate no keys.",
        ),
        _factor_input(
            "detail",
            default.detail[1],
            "At the end of the schedule, how strongly the images look at the reference at all (a factor of the "
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
    ]


def _advanced_numbers() -> list[io.Input]:
    """Those of 'custom' that few need."""
    default = Frequencies()
    return [
        fraction_input(
            "value_statistics",
            0.0,
            "How far the images' values take on the mean and deviation of the reference's. Higher values bring its "
            "colours and contrast in more directly.",
            step=0.05,
            advanced=True,
        ),
        _factor_input(
            "structure_start",
            default.structure[0],
            "The same as structure, at the beginning of the schedule; between, it changes evenly. Higher values copy "
            "more of the reference's layout, which is settled there.",
            advanced=True,
        ),
        _factor_input(
            "detail_start",
            default.detail[0],
            "The same as detail, at the beginning of the schedule; between, it changes evenly. Higher values "
            "take more of the reference's large areas of colour, which are settled there.",
            advanced=True,
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


def _factor_input(name: str, default: float, tooltip: str, advanced: bool = False) -> io.Float.Input:
    """A factor of the reference's keys."""
    return io.Float.Input(name, default=default, min=0.0, max=4.0, step=0.01, tooltip=tooltip, advanced=advanced)


def style_blocks_input() -> io.DynamicCombo.Input:
    """Which blocks look at the reference."""
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


def read_style_settings(preset: dict[str, Any], family: ModelFamily) -> StyleSettings:
    """What the `preset` input means on a model."""
    if preset["preset"] != CUSTOM:
        return style_preset(family, None if preset["preset"] == AUTO else preset["preset"])
    numbers = {name: finite(preset[name], name) for name in preset if name not in ("preset", "reference_tokens")}
    structure, detail = ((numbers[f"{name}_start"], numbers[name]) for name in ("structure", "detail"))
    return StyleSettings(
        family.blocks,
        "The user.",
        Frequencies(structure, detail, numbers["falloff"]),
        Statistics(numbers["statistics"], numbers["value_statistics"]),
        preset["reference_tokens"] == INSTEAD,
    )


def read_style_blocks(blocks: dict[str, Any], family: ModelFamily, settings: StyleSettings) -> dict[str, float]:
    """Weights by block name from the `blocks` input."""
    if blocks["blocks"] == CUSTOM:
        return parse_block_weights(blocks["weights"], family.blocks)
    return dict.fromkeys(family.blocks if blocks["blocks"] == "all" else settings.blocks, 1.0)
