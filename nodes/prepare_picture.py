"""Prepare Picture: the square that an image encoder reads."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from ..attention.engine.scope import finite
from ..host.ip_adapter.prepared_pictures import FILTERS, PLACES, Filter, Place, prepared
from .inputs import IP_ADAPTER_CATEGORY


class PreparePicture(io.ComfyNode):
    """PrepImageForClipVision of ComfyUI_IPAdapter_plus. No template; help page SemblancePreparePicture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SemblancePreparePicture",
            display_name="Prepare Picture",
            category=IP_ADAPTER_CATEGORY,
            description="Cuts a picture to the square that image encoders read, at the edge you choose, or pads it. "
            "Without this node they take the middle, and lose what is at the ends of a long picture.",
            search_aliases=["prep image for clipvision", "prepare image for clip vision", "ipadapter", "crop square"],
            inputs=[
                io.Image.Input("image", tooltip="A picture, or a batch of them."),
                io.Combo.Input(
                    "interpolation",
                    options=list(FILTERS),
                    tooltip="The filter that resizes the picture. LANCZOS is the sharpest, NEAREST takes single "
                    "pixels.",
                ),
                io.Combo.Input(
                    "crop_position",
                    options=list(PLACES),
                    tooltip="Which part of the picture is kept. 'top' and 'bottom' count for tall pictures, 'left' and "
                    "'right' for wide ones; else it is the middle. 'pad' keeps all of it, with black beside it.",
                ),
                io.Float.Input(
                    "sharpening",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How much the result is sharpened. Higher values bring out more detail; 0 turns it off.",
                ),
            ],
            outputs=[io.Image.Output("image", tooltip="The square pictures, 224 x 224.")],
        )

    @classmethod
    def execute(cls, image: Tensor, interpolation: Filter, crop_position: Place, sharpening: float) -> io.NodeOutput:
        return io.NodeOutput(prepared(image, interpolation, crop_position, finite(sharpening, "The sharpening")))
