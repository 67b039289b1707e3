"""What each block of a model does."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..host.each_block import WAYS, each_block
from .inputs import EVALUATION


class EachBlock(io.ComfyNode):
    """The probe of blocks, as a list in one queue. Template each_block; help page SemblanceEachBlock."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SemblanceEachBlock",
            display_name="Each Block",
            category=EVALUATION,
            description="Makes a list of models, in each of which the last Semblance patch acts in one block alone. "
            "Sample with the list, and you see what each block carries: style, layout, or nothing.",
            search_aliases=[
                "block probe",
                "block weights",
                "layer probe",
                "which block",
                "xy plot",
                "mbw",
                "style blocks",
            ],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="A model that InstantStyle, Reference Style, StyleID or Apply Style Adapter acts on. Set "
                    "'blocks' of that node to 'all', so that every block is tried.",
                ),
                io.Combo.Input(
                    "way",
                    options=list(WAYS),
                    tooltip="'each alone' shows what a block brings by itself. 'all but each' shows what is lost "
                    "without it.",
                ),
                io.Int.Input(
                    "together",
                    default=1,
                    min=1,
                    max=64,
                    tooltip="How many neighbouring blocks are tried together. More makes fewer pictures, which helps "
                    "with models of many blocks: Flux has 57.",
                ),
            ],
            outputs=[
                io.Model.Output("models", is_output_list=True, tooltip="A model for each block, or group of them."),
                io.String.Output(
                    "captions",
                    is_output_list=True,
                    tooltip="The names of the blocks, in the same order, for Picture Grid and Score Table.",
                ),
            ],
        )

    @classmethod
    def execute(cls, model: Any, way: str, together: int) -> io.NodeOutput:
        tried = each_block(model, way, together)
        return io.NodeOutput([one for _, one in tried], [caption for caption, _ in tried])
