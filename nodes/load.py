"""Load IP-Adapter, and the text tower that names what a reference shows."""

from __future__ import annotations

from comfy_api.latest import io

from ..host.files import ADAPTERS, CLIP_VISION, DEMO_ADAPTERS, TEXT_ENCODERS
from ..host.instantstyle.adapter import PUBLISHED, load_adapter
from ..host.instantstyle.text_towers import TOWER_PUBLISHED, load_text_tower
from . import sockets
from .inputs import CATEGORY, file_options, missing_file
from .reports import reported


class LoadAdapter(io.ComfyNode):
    """IP-Adapter (arXiv:2308.06721), its files. Templates instantstyle*; help page SemblanceLoadAdapter."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SemblanceLoadAdapter",
            display_name="Load IP-Adapter",
            category=CATEGORY,
            description="Opens an IP-Adapter file and reports its model family, its number of image tokens and the "
            "image encoder it needs.",
            search_aliases=["ipadapter", "ip adapter", "ip-adapter", "instantstyle", "style transfer", "image prompt"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=file_options(ADAPTERS, DEMO_ADAPTERS),
                    tooltip="A file in models/ipadapter; for Load Demo Model choose one whose name begins with "
                    "semblance_demo. Base, light, vit-G, plus, plus-face, full-face and composition adapters for SD "
                    "1.5 and SDXL, and InstantX's and XLabs' for Flux, are recognised by their contents, so the file "
                    "may have any name.",
                )
            ],
            outputs=[
                sockets.Adapter.Output(
                    "adapter", tooltip="For Apply IP-Adapter, Encode Style Reference and Load Style."
                ),
                io.String.Output("kind", tooltip="The kind of adapter that was recognised. Also shown on the node."),
            ],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def validate_inputs(cls, file: str | None = None) -> bool | str:
        return missing_file(file, ADAPTERS, DEMO_ADAPTERS, published=PUBLISHED)

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        adapter = load_adapter(file)
        kind = str(adapter.layout)
        return reported(cls, kind, adapter, kind)


class LoadTextTower(io.ComfyNode):
    """ViT-H's words, which ComfyUI's CLIP loaders lack. No template; help page SemblanceLoadTextTower."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SemblanceLoadTextTower",
            display_name="Load CLIP Text Tower",
            category=CATEGORY,
            description="Opens the text half of a full CLIP file such as CLIP-ViT-H-14. Subtract Content Text needs it "
            "to subtract words from a picture's embedding. It runs on the CPU.",
            search_aliases=["clip-h text", "ViT-H text", "open clip", "content words"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=file_options(CLIP_VISION, TEXT_ENCODERS),
                    tooltip="A full CLIP file in models/clip_vision or models/text_encoders. A file that holds only an "
                    "image encoder is refused.",
                )
            ],
            outputs=[sockets.TextTower.Output("text_tower", tooltip="For Subtract Content Text and CLIP Score.")],
        )

    @classmethod
    def validate_inputs(cls, file: str | None = None) -> bool | str:
        return missing_file(file, CLIP_VISION, TEXT_ENCODERS, published=TOWER_PUBLISHED)

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        return io.NodeOutput(load_text_tower(file))
