"""Tune Style: an adapter learnt from one picture or few."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import comfy.utils
import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..attention.adapters.style_adapter import FORMS, StyleAdapter
from ..attention.families import PRESETS
from ..attention.families.family import STYLE
from ..host.binding.model import ModelMap, map_model
from ..host.blocked import not_made
from ..host.conditioning import text_for
from ..host.display import show_text
from ..host.pictures import image_of, tensor_of
from ..host.styledrop.encoding import caption, encode_examples, encode_text, given_examples
from ..host.styledrop.examples import Examples
from ..host.styledrop.loss_chart import draw_losses, loss_map
from ..host.styledrop.memory import estimate, said_before
from ..host.styledrop.previews import Preview
from ..host.styledrop.recipe import LARGEST_SEED, TuningRecipe
from ..host.styledrop.report import line_of, report_of
from ..host.styledrop.tuning import TuningStep, tune
from ..host.styledrop.unfinished import keep_unfinished
from . import sockets
from .inputs import CATEGORY, CUSTOM, custom_blocks, missing_choice
from .parsing import read_captions

BLOCKS = ("all", *(preset for preset in PRESETS if preset != "all"), CUSTOM)
PREVIEW_SIDE = 512
"""Pixels of a preview's long side in the browser."""


class TuneStyle(io.ComfyNode):
    """StyleDrop (arXiv:2306.00983), its tuning. Help page SemblanceTuneStyle."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SemblanceTuneStyle",
            display_name="Tune Style",
            category=CATEGORY,
            description="Learns a style from one picture or few: it tunes a small adapter, less than 1 % of the "
            "model's weights, and leaves the model as it is. It shows the loss and preview pictures while it runs. "
            "Cancel keeps what was learnt.",
            search_aliases=[
                "styledrop",
                "train lora",
                "train style",
                "fine-tune",
                "finetune",
                "dreambooth",
                "training",
            ],
            inputs=[*_picture_inputs(), *_adapter_inputs(), *_training_inputs(), *_preview_inputs()],
            outputs=[
                sockets.StyleAdapter.Output(
                    "style_adapter", tooltip="For Apply Style Adapter, StyleDrop Guider and Save Style Adapter."
                ),
                io.Custom("LOSS_MAP").Output("losses", tooltip="The loss of every step, for Plot Loss Graph."),
                io.Image.Output("chart", tooltip="The losses as a chart. Also on the node."),
                io.Image.Output(
                    "previews", tooltip="The pictures sampled on the way, in order; the last ones are best."
                ),
            ],
            hidden=[io.Hidden.unique_id],
            is_input_list=True,
            has_intermediate_output=True,
        )

    @classmethod
    def validate_inputs(cls, blocks: str | None = None) -> bool | str:
        return missing_choice({"blocks": BLOCKS}, blocks=blocks)

    @classmethod
    def execute(cls, model: list[Any], **given: Any) -> io.NodeOutput:
        asked = Asked.read(given)
        recipe = asked.recipe(map_model(model[0]))
        examples = asked.examples()
        memory = estimate(model[0], examples.each, recipe)
        said = said_before(memory, model[0].load_device)
        logging.info("Semblance: %s", said)
        preview = asked.preview(model[0], examples)
        watch = Watch(cls.hidden.unique_id, said, recipe.steps, asked.preview_every, preview)
        tuned = tune(model[0], examples, recipe, asked.continue_from, watch.after, keep_unfinished)
        report = report_of(tuned, model[0], memory)
        show_text(cls.hidden.unique_id, report)
        first = tuned.adapter.state.step - len(tuned.losses) + 1 if tuned.adapter.state else 1
        chart = tensor_of(draw_losses(tuned.losses, first))
        shown = {**ui.PreviewImage(chart, cls=cls).as_dict(), "text": (report,)}
        return io.NodeOutput(tuned.adapter, loss_map(tuned.losses), chart, watch.pictures(), ui=shown)


@dataclass(frozen=True, eq=False)
class Asked:
    """The inputs, of which lists stay lists and the others are single."""

    pictures: list[Tensor]
    clip: Any
    vae: Any
    content_words: list[str]
    style_words: str
    latents: list[Mapping[str, Any]]
    conditioning: list[Any]
    form: Any
    width: int
    blocks: Mapping[str, Any]
    steps: int
    learning_rate: float
    batch: int
    seed: int
    flips: bool
    gradient_checkpointing: bool
    weight_decay: float
    preview_every: int
    preview_prompt: str
    preview_cfg: float
    continue_from: StyleAdapter | None

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Asked:
        """From what ComfyUI calls a node of lists with: a list for every input, also for those within `blocks`."""

        def listed(name: str) -> list[Any]:
            return [one for one in given.get(name) or () if one is not None]

        lists = {name: listed(name) for name in ("pictures", "latents", "conditioning")}
        singles = {
            name: (listed(name) or [None])[0]
            for name in cls.__dataclass_fields__
            if name not in (*lists, "blocks", "content_words")
        }
        blocks = given["blocks"]
        blocks = {name: value[0] if isinstance(value, list) else value for name, value in blocks.items()}
        return cls(blocks=blocks, content_words=read_captions(listed("content_words")), **lists, **singles)

    def recipe(self, model_map: ModelMap) -> TuningRecipe:
        chosen = self.blocks["blocks"]
        names = self.blocks.get("names") or ""
        weights = custom_blocks(names, model_map, STYLE) if chosen == CUSTOM else model_map.family.preset(chosen)
        return TuningRecipe(
            blocks=tuple(block for block in model_map.family.blocks if weights.get(block)),
            form=self.form,
            width=self.width,
            steps=self.steps,
            learning_rate=self.learning_rate,
            batch=self.batch,
            seed=self.seed,
            flips=self.flips,
            weight_decay=self.weight_decay,
            gradient_checkpointing=self.gradient_checkpointing,
        )

    def examples(self) -> Examples:
        """Raises ValueError unless the pictures have what belongs to them."""
        if self.pictures and self.latents:
            raise ValueError(
                "Pictures and latents are both connected, so it is not clear which to tune on. Disconnect one of them."
            )
        if self.latents:
            return given_examples(self.latents, self.conditioning)
        if self.pictures and (self.clip is None or self.vae is None):
            missing = "CLIP" if self.clip is None else "VAE"
            raise ValueError(f"To tune on pictures a {missing} is needed. Connect that of the model's checkpoint.")
        return encode_examples(self.pictures, self.content_words, self.style_words, self.clip, self.vae, self.flips)

    def preview(self, model: Any, examples: Examples) -> Preview | None:
        """How previews are sampled, or None without them."""
        if not self.preview_every:
            return None
        if self.vae is None:
            raise ValueError("Previews need a VAE to be seen. Connect one, or set preview_every to 0.")
        first = examples.each[0]
        prompts = [first.conditioning]
        if self.preview_prompt.strip():
            if self.clip is None:
                raise ValueError("The preview prompt needs a CLIP. Connect one, or leave preview_prompt empty.")
            prompts.append(encode_text(self.clip, caption(self.preview_prompt, self.style_words)))
        text = text_for(model, first.conditioning if self.clip is None else self.clip, self.preview_cfg)
        return Preview(prompts, text.negative, self.vae, tuple(first.latent.shape), self.seed, cfg=self.preview_cfg)


class Watch:
    """Shows a tuning while it runs: progress and loss at every step, and pictures every so many."""

    def __init__(self, node_id: str | None, said: str, steps: int, every: int, preview: Preview | None) -> None:
        self._node_id, self._said, self._every, self._preview = node_id, said, every, preview
        self._bar = comfy.utils.ProgressBar(steps, node_id)
        self._pictures: list[Tensor] = []
        show_text(node_id, said)

    def after(self, step: TuningStep) -> bool:
        """Told of every step; returns whether it sampled."""
        show_text(self._node_id, f"{self._said}\n{line_of(step)}")
        if self._preview is None or (step.done % self._every and step.done != step.steps):
            self._bar.update_absolute(step.done, step.steps)
            return False
        pictures = self._preview.pictures(step.model)
        self._pictures.append(pictures)
        image = image_of(pictures.transpose(0, 1).flatten(1, 2))  # side by side
        self._bar.update_absolute(step.done, step.steps, ("JPEG", image, PREVIEW_SIDE))
        return True

    def pictures(self) -> Any:
        """All previews as one batch."""
        if not self._pictures:
            return not_made("Tune Style sampled no previews: set preview_every to a number of steps.")
        return torch.cat(self._pictures)


def _picture_inputs() -> list[io.Input]:
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
            "the same words into your prompts later. It may be empty.",
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


def _adapter_inputs() -> list[io.Input]:
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


def _training_inputs() -> list[io.Input]:
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
            control_after_generate=True,
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
            tooltip="Saves most of the memory and makes a step about a third slower. The node says how much memory it "
            "takes before it starts.",
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


def _preview_inputs() -> list[io.Input]:
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
