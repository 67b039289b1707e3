"""Pictures as references with weights and masks of their own, arithmetic of references, and noise to set against."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..attention.engine.scope import finite
from ..attention.functional.picture_sums import PICTURE_SUMS, PictureSum
from ..host.instantstyle.adapter import LoadedAdapter
from ..host.instantstyle.encoding import EncodedStyle
from ..host.ip_adapter.noise_pictures import NOISES, Noise, noise_picture
from ..host.ip_adapter.references import combined_references, picture_reference
from ..host.ip_adapter.sources import PictureReader
from . import sockets
from .inputs import IP_ADAPTER_CATEGORY, fraction_input
from .listening_inputs import adapter_input, encoder_input, weight_input
from .parsing import listed_weights


class EncodePicture(io.ComfyNode):
    """IP-Adapter (arXiv:2308.06721), image side. No template; help page SemblanceEncodePicture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SemblanceEncodePicture",
            display_name="Encode Picture",
            category=IP_ADAPTER_CATEGORY,
            description="Encodes a picture as a reference with a weight and a mask of its own. Combine References "
            "joins several. The numbers are those of ComfyUI_IPAdapter_plus; Encode Style Reference gives those of the "
            "authors' code.",
            search_aliases=["ipadapter encoder", "ipadapter embeds", "encode image", "weighted embeds", "clip vision"],
            inputs=[
                adapter_input(
                    "From Load IP-Adapter by Kind, or from Load IP-Adapter with an image encoder at 'clip_vision'."
                ),
                io.Image.Input("image", tooltip="A picture, or a batch of them. The encoder sees their middle square."),
                weight_input(
                    "weight",
                    3.0,
                    "What the encoded picture is multiplied with. Higher values make it count more among others; "
                    "negative ones turn it round.",
                    step=0.01,
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="What the encoder sees of the picture, in white; the rest becomes grey to it. One mask, or "
                    "one for each picture.",
                ),
                encoder_input(),
            ],
            outputs=[
                sockets.Reference.Output(
                    "reference", tooltip="The picture, for Apply IP-Adapter, Combine References, and InstantStyle."
                ),
                sockets.Reference.Output(
                    "nothing",
                    tooltip="What stands against it: an empty picture, or with plus adapters a black one. For "
                    "'image_negative' of Apply IP-Adapter, which takes it by itself if nothing is connected.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        ipadapter: LoadedAdapter,
        image: Tensor,
        weight: float,
        mask: Tensor | None = None,
        clip_vision: Any = None,
    ) -> io.NodeOutput:
        (number,) = listed_weights(weight, each=False)
        return io.NodeOutput(*picture_reference(PictureReader(ipadapter, clip_vision), image, number, mask))


class CombineReferences(io.ComfyNode):
    """Arithmetic of encoded pictures. No template; help page SemblanceCombineReferences."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        further = [
            sockets.Reference.Input(
                f"embed{place}",
                f"reference{place}",
                optional=True,
                tooltip="A further reference of the same image encoder and kind of adapter.",
            )
            for place in range(2, 6)
        ]
        return io.Schema(
            node_id="SemblanceCombineReferences",
            display_name="Combine References",
            category=IP_ADAPTER_CATEGORY,
            description="Makes one reference of the pictures of several: side by side, or by arithmetic on what the "
            "image encoder saw.",
            search_aliases=["ipadapter combine embeds", "merge references", "average style", "mix styles"],
            inputs=[
                sockets.Reference.Input(
                    "embed1", "reference1", tooltip="The first reference. 'subtract' takes the others from it."
                ),
                io.Combo.Input(
                    "method",
                    options=list(PICTURE_SUMS),
                    tooltip="How the pictures become one: 'concat' keeps all of them side by side; the others add, "
                    "subtract or average them, or take the highest or lowest of each channel.",
                ),
                *further,
            ],
            outputs=[sockets.Reference.Output("reference", tooltip="For Apply IP-Adapter, InstantStyle, Save Style.")],
        )

    @classmethod
    def execute(
        cls,
        embed1: EncodedStyle,
        method: PictureSum,
        embed2: EncodedStyle | None = None,
        embed3: EncodedStyle | None = None,
        embed4: EncodedStyle | None = None,
        embed5: EncodedStyle | None = None,
    ) -> io.NodeOutput:
        references = [embed for embed in (embed1, embed2, embed3, embed4, embed5) if embed is not None]
        return io.NodeOutput(combined_references(references, method))


class NoisePicture(io.ComfyNode):
    """A picture to steer away from. No template; help page SemblanceNoisePicture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SemblanceNoisePicture",
            display_name="Noise Picture",
            category=IP_ADAPTER_CATEGORY,
            description="Makes a noisy picture for 'image_negative' of Apply IP-Adapter. Guidance then steers away "
            "from noise, which makes the result cleaner and often bolder. The same picture gives the same noise.",
            search_aliases=["ipadapter noise", "negative image", "noise injection", "noisy image"],
            inputs=[
                io.Combo.Input(
                    "type",
                    options=list(NOISES),
                    tooltip="'fade' blends the picture into noise, 'dissolve' replaces single values, 'gaussian' adds "
                    "to them, 'shuffle' bends and turns the picture and blends it with noise.",
                ),
                fraction_input("strength", 1.0, "How much of the picture gives way to noise. 1: most.", step=0.05),
                io.Int.Input(
                    "blur",
                    default=0,
                    min=0,
                    max=32,
                    tooltip="Width of the blur over the result, in pixels. Higher values make coarser noise.",
                ),
                io.Image.Input(
                    "image", optional=True, tooltip="The picture that the noise begins with; without one it is black."
                ),
            ],
            outputs=[
                io.Image.Output("image", tooltip="The noise, 224 x 224, for 'image_negative' of Apply IP-Adapter.")
            ],
        )

    @classmethod
    def execute(cls, type: Noise, strength: float, blur: int, image: Tensor | None = None) -> io.NodeOutput:
        return io.NodeOutput(noise_picture(type, finite(strength, "The strength"), blur, image))
