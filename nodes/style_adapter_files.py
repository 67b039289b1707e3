"""Style adapters in files."""

from __future__ import annotations

from comfy_api.latest import io

from ..attention.adapters.style_adapter import StyleAdapter
from ..host.files import STYLE_ADAPTERS
from ..host.styledrop.adapter_files import (
    CONTENTS,
    Contents,
    described,
    load_adapter,
    save_adapter,
    save_lora,
    thumbnail_on,
)
from ..version import VERSION
from . import sockets
from .inputs import CATEGORY, file_fingerprint, file_options, missing_file
from .reports import reported


class SaveStyleAdapter(io.ComfyNode):
    """Files of style adapters, read by LoadStyleAdapter. Help page SemblanceSaveStyleAdapter."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SemblanceSaveStyleAdapter",
            display_name="Save Style Adapter",
            category=CATEGORY,
            description="Writes a tuned style as one safetensors file with a thumbnail, in models/semblance/adapters. "
            "One that is a LoRA can go into models/loras besides, for LoRA loaders. If the name is taken, a number "
            "is added; nothing is overwritten.",
            search_aliases=["styledrop", "save lora", "keep style", "export lora", "tuned style"],
            inputs=[
                sockets.StyleAdapter.Input("style_adapter", tooltip="From Tune Style."),
                io.String.Input("name", default="my style", tooltip="Name of the file. A slash makes a folder."),
                io.Combo.Input(
                    "contents",
                    options=list(CONTENTS),
                    tooltip="'adapter and tuning state' keeps what Tune Style needs to go on as if it had never "
                    "stopped. 'adapter' takes a third of the size, for sharing. 'adapter in float16' halves that once "
                    "more.",
                ),
                io.Boolean.Input(
                    "lora_file",
                    default=True,
                    tooltip="Also writes a LoRA into models/loras, in the names that loaders read; one for aMUSEd "
                    "only ComfyUI's own reads. A bottleneck has no LoRA: for it this does nothing.",
                ),
            ],
            outputs=[
                io.String.Output("file", tooltip="Name of the file that was written."),
                io.String.Output("report", tooltip="The files that were written and their sizes."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, style_adapter: StyleAdapter, name: str, contents: Contents, lora_file: bool) -> io.NodeOutput:
        saved = save_adapter(style_adapter, name, VERSION, contents)
        lines = [f"{saved.name}: {style_adapter.form}, {saved.bytes / 2**20:.2f} MB"]
        if lora_file and style_adapter.form == "lora":
            lora = save_lora(style_adapter, name, VERSION, contents)
            lines.append(f"{lora.name} in models/loras: {lora.bytes / 2**20:.2f} MB")
        report = "\n".join(lines)
        return reported(cls, report, saved.name, report, thumbnail=thumbnail_on(style_adapter))


class LoadStyleAdapter(io.ComfyNode):
    """Files of style adapters, written by SaveStyleAdapter. Help page SemblanceLoadStyleAdapter."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SemblanceLoadStyleAdapter",
            display_name="Load Style Adapter",
            category=CATEGORY,
            description="Opens a tuned style saved by Save Style Adapter and shows its thumbnail. Its words of style "
            "come out as a text, for the prompt.",
            search_aliases=["styledrop", "load style", "tuned style", "style file"],
            inputs=[
                io.Combo.Input(
                    "file", options=file_options(STYLE_ADAPTERS), tooltip="A file in models/semblance/adapters."
                ),
            ],
            outputs=[
                sockets.StyleAdapter.Output(
                    "style_adapter", tooltip="For Apply Style Adapter, StyleDrop Guider, or Tune Style to go on with."
                ),
                io.String.Output("style_words", tooltip="The style in words, as it was tuned. Join it to your prompt."),
                io.String.Output("report", tooltip="What the adapter is. Also shown on the node."),
            ],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def validate_inputs(cls, file: str | None = None) -> bool | str:
        return missing_file(file, STYLE_ADAPTERS)

    @classmethod
    def fingerprint_inputs(cls, file: str) -> str:
        return file_fingerprint(file, STYLE_ADAPTERS)

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        adapter = load_adapter(file)
        report = described(adapter)
        return reported(cls, report, adapter, adapter.style_words, report, thumbnail=thumbnail_on(adapter))
