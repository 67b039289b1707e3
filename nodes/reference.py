"""Style references: encoded from pictures, freed of their content, saved and loaded."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.latest import io, ui
from torch import Tensor

from ..attention.engine.scope import finite
from ..attention.functional.embeddings import COMBINATIONS, Combination
from ..host.files import STYLES
from ..host.instantstyle.adapter import LoadedAdapter
from ..host.instantstyle.content_words import embed_phrases, parse_phrases
from ..host.instantstyle.encoding import EncodedStyle, encode_style
from ..host.instantstyle.style_files import load_style, save_style
from ..host.pictures import FITS, Fit
from ..version import VERSION
from . import sockets
from .inputs import CATEGORY, file_fingerprint, file_options, missing_file
from .parsing import read_weights
from .reports import preview


class EncodeReference(io.ComfyNode):
    """IP-Adapter (arXiv:2308.06721), image side. Templates instantstyle*; help page SemblanceEncodeReference."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        pictures = io.Autogrow.TemplatePrefix(
            io.Image.Input(
                "picture",
                tooltip="A style picture, or a batch of them. Each time you connect one, a new socket appears.",
            ),
            prefix="picture",
            min=1,
            max=16,
        )
        return io.Schema(
            node_id="SemblanceEncodeReference",
            display_name="Encode Style Reference",
            category=CATEGORY,
            description="Encodes style pictures with the adapter's image encoder. The node shows the pictures as the "
            "encoder received them: 'crop' loses the borders of a wide picture, the other fits keep them.",
            search_aliases=["ipadapter encoder", "style transfer", "reference only", "style picture", "clip vision"],
            inputs=[
                sockets.Adapter.Input(
                    "adapter", tooltip="From Load IP-Adapter. It determines which image encoder is needed."
                ),
                io.ClipVision.Input("clip_vision", tooltip="The image encoder the adapter was trained with."),
                io.Autogrow.Input("pictures", template=pictures, tooltip="The pictures whose style you want."),
                io.Combo.Input(
                    "combine",
                    options=list(COMBINATIONS),
                    tooltip="How several pictures become one reference: 'concatenate' keeps the tokens of each, "
                    "'average' and 'norm average' blend them, 'add' sums them, 'subtract' takes the average of the "
                    "others from the first.",
                ),
                io.Combo.Input(
                    "fit",
                    options=list(FITS),
                    tooltip="How a picture becomes the square that the encoder reads: 'crop' takes its middle, 'pad' "
                    "puts all of it on a neutral background, 'tile' cuts it into several squares side by side, "
                    "'stretch' squashes all of it to a square, as InstantX's code for Flux does.",
                ),
                io.String.Input(
                    "weights",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="One weight for each picture, e.g. 1.0, 0.5. A higher weight counts more. If empty, all "
                    "pictures count alike. With a mask for each picture, the weight is that picture's strength in its "
                    "area.",
                ),
                io.Image.Input(
                    "negative",
                    optional=True,
                    advanced=True,
                    tooltip="A picture of what to steer away from. It replaces the empty picture that guidance uses.",
                ),
            ],
            outputs=[
                sockets.Reference.Output(
                    "reference", tooltip="For InstantStyle, Subtract Content Text and Save Style."
                ),
                io.Image.Output("fitted", tooltip="The pictures as the encoder received them."),
            ],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(
        cls,
        adapter: LoadedAdapter,
        clip_vision: Any,
        pictures: dict[str, Tensor | None],
        combine: Combination,
        fit: Fit,
        weights: str = "",
        negative: Tensor | None = None,
    ) -> io.NodeOutput:
        connected = {name: picture for name, picture in pictures.items() if picture is not None}
        style, fitted = encode_style(adapter, clip_vision, connected, combine, fit, read_weights(weights), negative)
        return io.NodeOutput(style, fitted, ui=ui.PreviewImage(fitted, cls=cls))


class SubtractContent(io.ComfyNode):
    """InstantStyle's subtraction. Template instantstyle_content_subtraction; help page SemblanceSubtractContent."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SemblanceSubtractContent",
            display_name="Subtract Content Text",
            category=CATEGORY,
            description="Takes content words out of a style reference, so that, for example, the rabbit in a style "
            "picture does not appear in the result. For adapters that read one embedding of the whole picture (base, "
            "light, vit-G).",
            search_aliases=["content leakage", "negative content", "instantstyle", "remove content"],
            inputs=[
                sockets.Reference.Input("reference", tooltip="From Encode Style Reference or Load Style."),
                io.MultiType.Input(
                    "text_encoder",
                    types=[io.Clip, sockets.TextTower],
                    tooltip="The text half that belongs to the reference's image encoder: for bigG the CLIP of an SDXL "
                    "checkpoint, for ViT-H an SD 2.x text encoder or Load CLIP Text Tower.",
                ),
                io.String.Input(
                    "text",
                    multiline=True,
                    default="a rabbit",
                    tooltip="Things that the reference shows and the result should not, one phrase on each line, in "
                    "English. (green grass:0.5) gives a phrase half the weight.",
                ),
                io.Float.Input(
                    "strength",
                    default=0.5,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    tooltip="How much of the words is taken out. Higher values remove more content; above about 1 they "
                    "remove style too.",
                ),
            ],
            outputs=[sockets.Reference.Output("reference", tooltip="The reference without the words.")],
        )

    @classmethod
    def execute(cls, reference: EncodedStyle, text_encoder: Any, text: str, strength: float) -> io.NodeOutput:
        phrases = parse_phrases(text)
        words = embed_phrases(text_encoder, phrases, reference.reference.check_global().width)
        freed = reference.reference.without(words, "; ".join(map(str, phrases)), finite(strength, "The strength"))
        return io.NodeOutput(replace(reference, reference=freed))


class SaveReference(io.ComfyNode):
    """Style files, read by LoadReference. No template; help page SemblanceSaveReference."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SemblanceSaveReference",
            display_name="Save Style",
            category=CATEGORY,
            description="Writes a style reference as one safetensors file with a thumbnail, in "
            "models/semblance/styles. If the name is taken, a number is added; nothing is overwritten.",
            search_aliases=["save reference", "save ipadapter embeds", "style file"],
            inputs=[
                sockets.Reference.Input("reference", tooltip="The style to keep."),
                io.String.Input("name", default="my style", tooltip="Name of the file. A slash makes a folder."),
            ],
            outputs=[io.String.Output("file", tooltip="Name of the file that was written.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, reference: EncodedStyle, name: str) -> io.NodeOutput:
        file = save_style(reference, name, VERSION)
        return io.NodeOutput(file, ui=preview(cls, reference.thumbnail) or {})


class LoadReference(io.ComfyNode):
    """Style files, written by SaveReference. No template; help page SemblanceLoadReference."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SemblanceLoadReference",
            display_name="Load Style",
            category=CATEGORY,
            description="Opens a style saved by Save Style and shows its thumbnail. It needs neither the pictures nor "
            "the image encoder.",
            search_aliases=["load reference", "load ipadapter embeds", "style file"],
            inputs=[
                sockets.Adapter.Input("adapter", tooltip="An adapter of the kind the style was made for."),
                io.Combo.Input("file", options=file_options(STYLES), tooltip="A file in models/semblance/styles."),
            ],
            outputs=[sockets.Reference.Output("reference", tooltip="For InstantStyle and Subtract Content Text.")],
            has_intermediate_output=True,
        )

    @classmethod
    def validate_inputs(cls, file: str | None = None) -> bool | str:
        return missing_file(file, STYLES)

    @classmethod
    def fingerprint_inputs(cls, adapter: Any, file: str) -> str:
        return file_fingerprint(file, STYLES)

    @classmethod
    def execute(cls, adapter: LoadedAdapter, file: str) -> io.NodeOutput:
        style = load_style(file, adapter)
        return io.NodeOutput(style, ui=preview(cls, style.thumbnail) or {})
