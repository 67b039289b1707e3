"""Inputs that several nodes share, and how they read."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..attention.families import PRESETS
from ..attention.host.patching import ModelMap
from ..attention.scope import CURVES, Keyframes, parse_block_weights, parse_keyframes

CATEGORY = "Semblance"
CUSTOM = "custom"


def blocks_input() -> io.DynamicCombo.Input:
    """Which blocks a method acts in: a preset of the family, or a weight for each named block."""
    weights = io.String.Input(
        "weights",
        default="output.1=1.0",
        tooltip="Blocks with their weights, e.g. output.1=1.0, input.8=0.4. A wrong name lists the right ones.",
    )
    options = [io.DynamicCombo.Option(preset, []) for preset in PRESETS]
    return io.DynamicCombo.Input(
        "blocks",
        options=[*options, io.DynamicCombo.Option(CUSTOM, [weights])],
        tooltip="Where the reference speaks. 'style' takes its look and leaves its content; 'layout' its composition; "
        "'all' is a plain IP-Adapter; 'custom' gives each block a weight of its own.",
    )


def curve_input() -> io.DynamicCombo.Input:
    """How a method's weight runs between start and end."""
    points = io.String.Input(
        "points",
        default="0:1, 0.5:0.5, 1:0",
        tooltip="Points of the curve as place:weight, place 0 being start and 1 end. More points bend it more.",
    )
    options = [io.DynamicCombo.Option(name, []) for name in CURVES]
    return io.DynamicCombo.Input(
        "curve",
        options=[*options, io.DynamicCombo.Option(CUSTOM, [points])],
        tooltip="How the strength runs from start to end: constant, fading in or out, or by points of your own.",
    )


def read_blocks(blocks: dict[str, Any], model_map: ModelMap) -> dict[str, float]:
    """Weights by block name from the `blocks` input."""
    if blocks["blocks"] == CUSTOM:
        return parse_block_weights(blocks["weights"], model_map.family.blocks)
    return model_map.family.preset(blocks["blocks"])


def read_curve(curve: dict[str, Any]) -> Keyframes:
    """Points of the curve from the `curve` input."""
    return parse_keyframes(curve["points"]) if curve["curve"] == CUSTOM else CURVES[curve["curve"]]


def unknown_choice(name: str, chosen: str, options: list[str]) -> str | bool:
    """For `validate_inputs`: True, or the sentence for a choice that is not on offer."""
    if chosen in options:
        return True
    return f"'{chosen}' is not a choice for {name}. Choose one of: {', '.join(options)}."
