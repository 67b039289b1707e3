"""What is on a MODEL."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..host.binding.describe import describe
from .inputs import CATEGORY
from .reports import reported


class ShowPatches(io.ComfyNode):
    """The patches a MODEL carries, ours and others', in order."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SemblanceShowPatches",
            display_name="Show Patches",
            category=CATEGORY,
            description="Lists what is on a model: Semblance's patches in order, with their blocks and strengths, and "
            "what other packs have put there.",
            search_aliases=["debug model", "inspect model", "list patches"],
            inputs=[io.Model.Input("model", tooltip="The model to look at. Nothing is sampled.")],
            outputs=[io.String.Output("patches", tooltip="The list, one thing a line; it is shown on the node too.")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model: Any) -> io.NodeOutput:
        patches = describe(model)
        return reported(cls, patches, patches)
