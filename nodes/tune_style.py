"""Tune Style: an adapter learnt from one picture or few."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from comfy_api.latest import io, ui
from torch import Tensor

from ..attention.adapters.style_adapter import StyleAdapter
from ..host.binding.model import ModelMap, map_model
from ..host.conditioning import text_for
from ..host.display import show_text
from ..host.pictures import tensor_of
from ..host.styledrop.encoding import caption, encode_examples, encode_text, given_examples
from ..host.styledrop.examples import Examples
from ..host.styledrop.going_on import differences
from ..host.styledrop.loss_chart import draw_losses, loss_map
from ..host.styledrop.memory import estimate, said_before
from ..host.styledrop.previews import Preview
from ..host.styledrop.recipe import TuningRecipe
from ..host.styledrop.tuning import tune
from ..host.styledrop.unfinished import keep_unfinished
from ..host.styledrop.watch import Watch, report_of
from . import sockets
from .inputs import CATEGORY, missing_choice
from .parsing import read_captions
from .tuning_inputs import (
    BLOCKS,
    picture_inputs,
    preview_inputs,
    read_tuned_blocks,
    training_inputs,
    tuned_layers_inputs,
)


class TuneStyle(io.ComfyNode):
    """StyleDrop (arXiv:2306.00983), its tuning. Help page SemblanceTuneStyle."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SemblanceTuneStyle",
            display_name="Tune Style",
            category=CATEGORY,
            description="Learns a style from one picture or few: it tunes a small adapter beside the frozen model, "
            "which stays as it is. It shows the loss and preview pictures while it runs. Cancel keeps what was learnt.",
            search_aliases=[
                "styledrop",
                "train lora",
                "train style",
                "fine-tune",
                "finetune",
                "dreambooth",
                "training",
            ],
            inputs=[*picture_inputs(), *tuned_layers_inputs(), *training_inputs(), *preview_inputs()],
            outputs=[
                sockets.StyleAdapter.Output(
                    "style_adapter", tooltip="For Apply Style Adapter, StyleDrop Guider and Save Style Adapter."
                ),
                io.Custom("LOSS_MAP").Output("losses", tooltip="The loss of every step, for Plot Loss Graph."),
                io.Image.Output("chart", tooltip="The losses as a chart. Also on the node."),
                io.Image.Output(
                    "previews",
                    tooltip="The pictures sampled on the way, in order; the last ones are of the finished adapter.",
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
    def execute(cls, **given: Any) -> io.NodeOutput:
        asked = Asked.read(given)
        model = asked.model
        recipe = asked.recipe(map_model(model))
        examples = asked.examples()
        memory = estimate(model, examples.each, recipe)
        notes = differences(asked.continue_from, recipe)
        said = "\n".join((said_before(memory, model.load_device, recipe), *notes))
        logging.info("Semblance: %s", said)
        preview = asked.preview(model, examples)
        watch = Watch(cls.hidden.unique_id, said, recipe.steps, asked.preview_every, preview)
        tuned = tune(model, examples, recipe, asked.continue_from, watch.after, keep_unfinished)
        report = "\n".join((report_of(tuned, model, memory), *notes))
        show_text(cls.hidden.unique_id, report)
        chart = tensor_of(draw_losses(tuned.losses, tuned.done - len(tuned.losses) + 1))
        shown = {**ui.PreviewImage(chart, cls=cls).as_dict(), "text": (report,)}
        return io.NodeOutput(tuned.adapter, loss_map(tuned.losses), chart, watch.pictures(), ui=shown)


@dataclass(frozen=True, eq=False)
class Asked:
    """The inputs, of which lists stay lists and the others are single."""

    model: Any
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

        def single(name: str, values: Any) -> Any:
            found = [one for one in values or () if one is not None] if isinstance(values, list | tuple) else [values]
            if len(found) > 1:
                raise ValueError(
                    f"The input '{name}' was given a list of {len(found)} values; Tune Style takes one there. Connect "
                    "a single value."
                )
            return found[0] if found else None

        lists = {name: listed(name) for name in ("pictures", "latents", "conditioning")}
        singles = {
            name: single(name, given.get(name))
            for name in cls.__dataclass_fields__
            if name not in (*lists, "blocks", "content_words")
        }
        blocks = {name: single(name, value) for name, value in given["blocks"].items()}
        return cls(blocks=blocks, content_words=read_captions(listed("content_words")), **lists, **singles)

    def recipe(self, model_map: ModelMap) -> TuningRecipe:
        return TuningRecipe(
            blocks=read_tuned_blocks(self.blocks, model_map),
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
            return given_examples(self.latents, self.conditioning, self.style_words)
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
