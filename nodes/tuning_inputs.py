"""The inputs of Tune Style."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

from ..attention.adapters.style_adapter import FORMS
from ..attention.families.family import STYLE
from ..host.binding.model import ModelMap
from . import sockets
from .inputs import ADAPTER_PRESETS, CUSTOM, LARGEST_SEED, custom_blocks

BLOCKS = (*ADAPTER_PRESETS, CUSTOM)


def picture_inputs() -> list[io.Input]:
    """What to learn from."""
    return [
        io.Model.Input(
            "model", tooltip="The model to tune on, straight from its loader, with LoRAs if any. It is not changed."
        ),
        io.Image.Input(
            "pictures",
            optional=True,
            tooltip="The picture whose style is to be learnt, or several: a batch, or a list of any sizes. Clear, "
            "typical pictures work best; one is enough.",
        ),
        io.Clip.Input("clip", optional=True, tooltip="The model's CLIP, for the words. Needed for pictures."),
        io.Vae.Input("vae", optional=True, tooltip="The model's VAE. Needed for pictures and for previews."),
        io.String.Input(
            "content_words",
            multiline=True,
            default="a cat",
            tooltip="What the picture shows, without its style, so that this is not taken for style. One line for all "
            "pictures, or one line for each, in their order.",
        ),
        io.String.Input(
            "style_words",
            default="in [V] style",
            tooltip="Words that follow the content words and name the style, e.g. in watercolor painting style. Put "
            "the same words into your prompts later. With latents the adapter only keeps them: their captions should "
            "have them already. It may be empty.",
        ),
        io.Latent.Input(
            "latents",
            optional=True,
            tooltip="In place of pictures: latents, or a list of them, e.g. from Make Training Dataset. They are not "
            "flipped.",
        ),
        io.Conditioning.Input(
            "conditioning",
            optional=True,
            tooltip="The captions of the latents, one for all of them or a list with one for each.",
        ),
    ]


def tuned_layers_inputs() -> list[io.Input]:
    """What kind of adapter, and where."""
    names = io.String.Input(
        "names",
        default="",
        tooltip="Blocks to tune, e.g. output.1, input.8. More blocks learn more of the picture. Empty: the blocks of "
        "'style' in this model. If a name is wrong, the error lists the right ones.",
    )
    options = [io.DynamicCombo.Option(preset, [names] if preset == CUSTOM else []) for preset in BLOCKS]
    return [
        io.Combo.Input(
            "form",
            options=list(FORMS),
            tooltip="'bottleneck' is the paper's: it acts on your prompts alone and works with StyleDrop Guider. "
            "'lora' can also be saved as an ordinary LoRA file for other tools.",
        ),
        io.Int.Input(
            "width",
            default=32,
            min=1,
            max=256,
            tooltip="How much the adapter can hold (the rank of a LoRA). Higher values learn finer detail, and more of "
            "the picture's content; the file grows with it.",
        ),
        io.DynamicCombo.Input(
            "blocks",
            options=options,
            tooltip="The blocks that get an adapter. 'all' is the paper's; 'style', 'layout' and 'style + layout' are "
            "the model's blocks for these, and take up less of the content; 'custom' names blocks.",
        ),
    ]


def training_inputs() -> list[io.Input]:
    """How it is learnt."""
    return [
        io.Int.Input(
            "steps",
            default=300,
            min=1,
            max=100000,
            tooltip="How many steps to take. More steps hold the style more firmly, and later also the content.",
        ),
        io.Float.Input(
            "learning_rate",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.00001,
            tooltip="How far each step goes. Higher values learn faster and break sooner. 0 takes a rate that suits "
            "the form.",
        ),
        io.Int.Input(
            "batch",
            default=1,
            min=1,
            max=64,
            tooltip="Pictures or noise levels in each step. Higher values learn more steadily and take as much more "
            "time and memory.",
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=LARGEST_SEED,
            control_after_generate=False,
            tooltip="Decides the noise of every step. The same seed gives the same adapter.",
        ),
        io.Boolean.Input(
            "flips",
            default=True,
            tooltip="Also shows the model each picture mirrored. Turn it off if left and right matter, as in writing.",
        ),
        io.Boolean.Input(
            "gradient_checkpointing",
            default=True,
            tooltip="Saves most of the memory of a step, which becomes about a third slower. The node says how much "
            "memory it takes before it starts.",
        ),
        io.Float.Input(
            "weight_decay",
            default=0.0,
            min=0.0,
            max=10.0,
            step=0.001,
            advanced=True,
            tooltip="Pulls the adapter back to nothing at each step. Higher values give a weaker, simpler style.",
        ),
        sockets.StyleAdapter.Input(
            "continue_from",
            optional=True,
            tooltip="An adapter to go on from: one that stopped, or the last round's with the pictures you picked. "
            "Form, width and blocks must be its own.",
        ),
    ]


def preview_inputs() -> list[io.Input]:
    """What is shown while it is learnt."""
    return [
        io.Int.Input(
            "preview_every",
            default=0,
            min=0,
            max=100000,
            tooltip="After so many steps pictures are sampled with the adapter and shown on the node, and at the end. "
            "Lower values show more and take time. 0: none.",
        ),
        io.String.Input(
            "preview_prompt",
            default="",
            tooltip="What a second preview shows in the style words, beside one of the first picture's own words, e.g. "
            "a house. Empty: none.",
        ),
        io.Float.Input(
            "preview_cfg",
            default=5.0,
            min=1.0,
            max=30.0,
            step=0.1,
            advanced=True,
            tooltip="CFG of the previews. Higher values follow the words more.",
        ),
    ]


def read_tuned_blocks(blocks: Mapping[str, Any], model_map: ModelMap) -> tuple[str, ...]:
    """The blocks to tune in the model's order, from the `blocks` input. Raises ValueError if the model has none."""
    chosen, names = blocks["blocks"], blocks.get("names") or ""
    family = model_map.family
    if not family.choices and chosen != "all" and not (chosen == CUSTOM and names.strip()):
        asked = "style" if chosen == CUSTOM else chosen
        raise ValueError(
            f"Nobody has found which blocks of {model_map.name} hold '{asked}'. Set blocks to 'all', or to 'custom' "
            f"with names, e.g. {family.blocks[-1]}."
        )
    weights = custom_blocks(names, model_map, STYLE) if chosen == CUSTOM else family.preset(chosen)
    return tuple(block for block in family.blocks if weights.get(block))
