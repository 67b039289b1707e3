"""Inputs that several nodes share, and how they read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from comfy_api.latest import io

from ..attention.engine.scope import CURVES, Keyframes
from ..attention.families import PRESETS
from ..attention.families.family import STYLE, BlockChoice, ChoiceKey, ModelFamily
from ..host.binding.model import ModelMap
from ..host.files import UnreadableFile, file_names, find_file
from ..host.inversion.runs import MOST_STEPS
from .parsing import parse_block_weights, parse_keyframes

CATEGORY = "Semblance"
EVALUATION = f"{CATEGORY}/Evaluation"
IP_ADAPTER_CATEGORY = f"{CATEGORY}/IP-Adapter"
CUSTOM = "custom"
LARGEST_SEED = 2**64 - 1
CHOICES = {"blocks": (*PRESETS, CUSTOM), "curve": (*CURVES, CUSTOM)}


def blocks_input() -> io.DynamicCombo.Input:
    """Which blocks a method acts in: a preset of the family, or a weight for each named block."""
    weights = io.String.Input(
        "weights",
        default="",
        tooltip="Blocks with their weights, e.g. output.1=1.0, input.8=0.4. A block with a higher weight follows the "
        "reference more. Empty: the blocks of 'style' in this model. If a name is wrong, the error lists the right "
        "ones.",
    )
    options = [io.DynamicCombo.Option(preset, []) for preset in PRESETS]
    return io.DynamicCombo.Input(
        "blocks",
        options=[*options, io.DynamicCombo.Option(CUSTOM, [weights])],
        tooltip="The blocks that the reference acts on. 'style' takes its look and leaves out its content; 'layout' "
        "takes its composition; 'style + layout' takes both; 'all' is a plain IP-Adapter; 'custom' sets a weight for "
        "each block. Which blocks carry style in Flux is unknown: take 'all' or 'custom' there.",
    )


ADAPTER_PRESETS = ("all", *(preset for preset in PRESETS if preset != "all"))
"""Those of style adapters, the first of which is chosen unless the user says otherwise."""


def adapter_blocks_input() -> io.DynamicCombo.Input:
    """Which of the blocks that it was tuned in an adapter acts in: all of them, unless the user says otherwise."""
    weights = io.String.Input(
        "weights",
        default="",
        tooltip="Blocks with their weights, e.g. output.1=1.0, input.8=0.4. A block with a higher weight shows more of "
        "the style. Empty: all blocks. If a name is wrong, the error lists the right ones.",
    )
    options = [io.DynamicCombo.Option(preset, []) for preset in ADAPTER_PRESETS]
    return io.DynamicCombo.Input(
        "blocks",
        options=[*options, io.DynamicCombo.Option(CUSTOM, [weights])],
        tooltip="The blocks that the adapter acts in, of those it was tuned in. 'all' takes every one; 'style', "
        "'layout' and 'style + layout' are the model's blocks for these; 'custom' sets a weight for each block.",
    )


def curve_input() -> io.DynamicCombo.Input:
    """How a method's weight runs between start and end."""
    points = io.String.Input(
        "points",
        default="0:1, 0.5:0.5, 1:0",
        tooltip="Points of the curve, written place:weight. Place 0 is start and 1 is end. A higher weight makes the "
        "style stronger there.",
    )
    options = [io.DynamicCombo.Option(name, []) for name in CURVES]
    return io.DynamicCombo.Input(
        "curve",
        options=[*options, io.DynamicCombo.Option(CUSTOM, [points])],
        tooltip="How the strength changes from start to end: constant, fading in or out, rising and falling, falling "
        "and rising, or 'custom' with points of your own.",
    )


def fraction_input(
    name: str, default: float, tooltip: str, step: float = 0.01, advanced: bool = False
) -> io.Float.Input:
    """A fraction from 0 to 1."""
    return io.Float.Input(name, default=default, min=0.0, max=1.0, step=step, tooltip=tooltip, advanced=advanced)


def inversion_text_input(tooltip: str) -> io.MultiType.Input:
    """The text a picture is inverted with: a CLIP, for the empty prompt, or a prompt."""
    return io.MultiType.Input("text", types=[io.Clip, io.Conditioning], optional=True, tooltip=tooltip)


def inversion_vae_input() -> io.Vae.Input:
    """The VAE that only the report of an inversion needs."""
    return io.Vae.Input(
        "vae", optional=True, tooltip="With a VAE the report also compares the decoded pictures, in decibels."
    )


def inversion_steps_input(tooltip: str) -> io.Int.Input:
    """How many steps an inversion takes."""
    return io.Int.Input("steps", default=50, min=2, max=MOST_STEPS, tooltip=tooltip)


def inversion_guidance_input(default: float, tooltip: str, advanced: bool = False) -> io.Float.Input:
    """CFG during an inversion."""
    return io.Float.Input("guidance", default=default, min=0.0, max=30.0, step=0.1, advanced=advanced, tooltip=tooltip)


def inversion_check_input() -> io.Boolean.Input:
    """Whether the pictures are sampled back for the report."""
    return io.Boolean.Input(
        "check",
        default=True,
        advanced=True,
        tooltip="Samples the pictures back from the noise and reports the error. It takes as long as the inversion.",
    )


def read_blocks(blocks: dict[str, Any], model_map: ModelMap) -> dict[str, float]:
    """Weights by block name from the `blocks` input."""
    if blocks["blocks"] == CUSTOM:
        return custom_blocks(blocks["weights"], model_map, STYLE)
    return model_map.family.preset(blocks["blocks"])


def read_adapter_blocks(blocks: dict[str, Any], model_map: ModelMap) -> dict[str, float]:
    """Weights by block name from the input of `adapter_blocks_input`."""
    if blocks["blocks"] == CUSTOM and not blocks["weights"].strip():
        return model_map.family.preset("all")
    return read_blocks(blocks, model_map)


def custom_blocks(text: str, model_map: ModelMap, own: ChoiceKey[BlockChoice]) -> dict[str, float]:
    """Weights by block name from a text; where it is empty, the method's `own` blocks in the MODEL's family."""
    return custom_blocks_of(model_map.family, text, own)


def custom_blocks_of(family: ModelFamily, text: str, own: ChoiceKey[BlockChoice]) -> dict[str, float]:
    """As `custom_blocks`, where no more is known of a MODEL than its family."""
    return parse_block_weights(text, family.blocks) if text.strip() else family.weights(own)


def read_curve(curve: dict[str, Any]) -> Keyframes:
    """Points of the curve from the `curve` input."""
    return parse_keyframes(curve["points"]) if curve["curve"] == CUSTOM else CURVES[curve["curve"]]


def missing_choice(known: Mapping[str, Sequence[str]] = CHOICES, **choices: Any) -> str | bool:
    """For `validate_inputs`: True, or the sentence for a choice ComfyUI left out because it does not know it."""
    for name, choice in choices.items():
        if choice is None:
            return f"The choice for {name} is missing or not on offer. Choose one of: {', '.join(known[name])}."
    return True


def file_options(*folders: str) -> list[str]:
    """The files a loader offers; an empty name where there are none, so that running it says what to put where."""
    return file_names(*folders) or [""]


def missing_file(name: str | None, *folders: str, published: str = "") -> str | bool:
    """For `validate_inputs`: True, or the sentence for a file that is not there."""
    if name is None:  # it comes from another node, and is not known before that has run
        return True
    try:
        find_file(name, *folders, published=published)
    except UnreadableFile as missing:
        return str(missing)
    return True


def file_fingerprint(name: str, folder: str) -> str:
    """For `fingerprint_inputs`: changes when the file does."""
    path = find_file(name, folder)
    return f"{path} {path.stat().st_mtime_ns}"
