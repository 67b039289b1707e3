"""What is on a MODEL."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..host.binding.describe import describe
from .inputs import CATEGORY
from .reports import reported


class ShowPatches(io.ComfyNode):
    """For finding faults, on any MODEL. No template; help page SemblanceShowPatches."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SemblanceShowPatches",
            display_name="Show Patches",
            category=CATEGORY,
            description="Lists the patches on a model: Semblance's own in order, with their blocks and strengths, and "
            "those of other nodes.",
            search_aliases=["debug model", "inspect model", "list patches"],
            inputs=[io.Model.Input("model", tooltip="The model to inspect. Nothing is sampled.")],
            outputs=[io.String.Output("patches", tooltip="The list, one patch on each line. Also shown on the node.")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model: Any) -> io.NodeOutput:
        patches = describe(model)
        return reported(cls, patches, patches)
