"""A picture on a MODEL in one node, with the numbers of ComfyUI_IPAdapter_plus."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..attention.engine.scope import finite
from ..attention.families.weight_types import BOOSTED, WEIGHT_TYPES, WeightType
from ..attention.functional.key_scaling import KeyScaling
from ..attention.functional.picture_sums import PictureSum
from ..host.instantstyle.adapter import LoadedAdapter
from ..host.ip_adapter.applying import Listening, apply_source
from ..host.ip_adapter.regions import Regions
from ..host.ip_adapter.sources import PictureReader, Source
from . import sockets
from .inputs import IP_ADAPTER_CATEGORY
from .listening_inputs import adapter_input, combine_input, encoder_input, scaling_input, weight_input, window_inputs
from .parsing import listed_weights

BOTH: WeightType = "style and composition"
STRONG: WeightType = "strong style and composition"
"""The same where the style is expanded to all other blocks."""


class ApplyAdapter(io.ComfyNode):
    """IP-Adapter (arXiv:2308.06721). Template one_node_style; help page SemblanceApplyAdapter."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SemblanceApplyAdapter",
            display_name="Apply IP-Adapter",
            category=IP_ADAPTER_CATEGORY,
            description="Puts a picture on a model, all in one node: it encodes the picture and adds it to the blocks "
            "that a weight type names. The numbers are those of ComfyUI_IPAdapter_plus, so its workflows give their "
            "pictures here. Chain several; other packs may come before or after.",
            search_aliases=[
                *("ipadapter", "ipadapter advanced", "ipadapter batch", "ipadapter style composition"),
                *("ipadapter precise style transfer", "ipadapter precise composition", "ipadapter mad scientist"),
                *("ipadapter embeds", "apply ipadapter", "ip-adapter", "style transfer", "image prompt"),
            ],
            inputs=[*_main_inputs(), *_optional_links(), *_further_settings()],
            outputs=[io.Model.Output("model", tooltip="The model with the picture on it, for any sampler.")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        ipadapter: LoadedAdapter,
        image: Source | Regions,
        weight: float | Sequence[float],
        weight_type: WeightType,
        combine_embeds: PictureSum,
        start_at: float,
        end_at: float,
        embeds_scaling: KeyScaling,
        image_negative: Source | None = None,
        attn_mask: Tensor | None = None,
        clip_vision: Any = None,
        image_composition: Tensor | None = None,
        weight_composition: float = 1.0,
        expand_style: bool = False,
        boost: float = 1.0,
        layers: str = "",
        per_image: bool = False,
        enhance_tiles: int = 1,
        enhance_ratio: float = 1.0,
    ) -> io.NodeOutput:
        listening = Listening(
            weights=listed_weights(weight, each=per_image),
            kind=STRONG if expand_style and weight_type == BOTH else weight_type,
            how=combine_embeds,
            scaling=embeds_scaling,
            start=start_at,
            end=end_at,
            composition_weight=finite(weight_composition, "The composition weight"),
            boost=finite(boost, "The boost") if weight_type in BOOSTED else None,
            layers=layers,
            per_image=per_image,
        )
        reader = PictureReader(ipadapter, clip_vision, enhance_tiles, finite(enhance_ratio, "The ratio"))
        patched = apply_source(model, reader, image, listening, image_negative, attn_mask, image_composition)
        return io.NodeOutput(patched)


def _main_inputs() -> list[io.Input]:
    return [
        io.Model.Input("model", tooltip="An SD 1.5 or SDXL model. It is not changed; a patched copy comes out."),
        adapter_input("From Load IP-Adapter by Kind, or from Load IP-Adapter with an image encoder at 'clip_vision'."),
        io.MultiType.Input(
            "image",
            types=[io.Image, sockets.Reference, sockets.Regions],
            tooltip="A picture or a batch of them, a reference from Encode Picture, Encode Style Reference or Load "
            "Style, or regions from Combine Regions, each with its own picture, weight, window and mask.",
        ),
        weight_input(
            "weight",
            5.0,
            "How strongly the picture acts: 0 turns it off, 1 is as trained. Higher values follow it more, negative "
            "ones steer away from it. A list from another node gives each image of the batch its own, with per_image.",
        ),
        io.Combo.Input(
            "weight_type",
            options=list(WEIGHT_TYPES),
            tooltip="How the weight is spread over the model's blocks: 'linear' everywhere, 'style transfer' and "
            "'composition' where each lives. The help page has all in a table.",
        ),
        combine_input(),
        *window_inputs(),
        scaling_input(),
    ]


def _optional_links() -> list[io.Input]:
    return [
        io.MultiType.Input(
            "image_negative",
            types=[io.Image, sockets.Reference],
            optional=True,
            tooltip="A picture, or a reference, of what to steer away from. Without it the negative side sees nothing, "
            "or with plus adapters a black picture.",
        ),
        io.Mask.Input(
            "attn_mask",
            optional=True,
            tooltip="The area where the picture acts, in white; grey counts in part. One mask, or one for each image "
            "of the batch. Passes by tiles (Ultimate SD Upscale, detailers) take each tile for a whole picture: bypass "
            "the mask there.",
        ),
        encoder_input(),
        io.Image.Input(
            "image_composition",
            optional=True,
            tooltip="A second picture for the blocks of composition, with the weight type 'style and composition'.",
        ),
    ]


def _further_settings() -> list[io.Input]:
    return [
        io.Float.Input(
            "weight_composition",
            default=1.0,
            min=-1.0,
            max=5.0,
            step=0.05,
            optional=True,
            advanced=True,
            tooltip="How strongly the blocks of composition follow the picture at image_composition or, without one, "
            "the first picture. Higher values follow it more. Only for 'style and composition'.",
        ),
        io.Boolean.Input(
            "expand_style",
            default=False,
            optional=True,
            advanced=True,
            tooltip="Lets the style act in all blocks but those of composition, and so more strongly. Only for 'style "
            "and composition'.",
        ),
        io.Float.Input(
            "boost",
            default=1.0,
            min=-5.0,
            max=5.0,
            step=0.05,
            optional=True,
            advanced=True,
            tooltip="How strongly the boosted precise types push the rest of the picture away. Higher values let less "
            "of the composition, or of the style, into the result.",
        ),
        io.String.Input(
            "layers",
            default="",
            multiline=True,
            optional=True,
            advanced=True,
            tooltip="Weights of single layers, written layer:weight, e.g. 3:2.5, 6:1. Higher weights follow the "
            "picture more there; layers left out do nothing. Takes the place of the weight type. Empty: not used.",
        ),
        io.Boolean.Input(
            "per_image",
            default=False,
            optional=True,
            advanced=True,
            tooltip="Gives the first picture to the first image of the batch, the second to the second, and so on. "
            "With too few pictures the last one holds for the rest.",
        ),
        io.Int.Input(
            "enhance_tiles",
            default=1,
            min=1,
            max=16,
            optional=True,
            advanced=True,
            tooltip="Shows the picture to the image encoder in so many by so many parts besides, for finer details. 1 "
            "turns it off; more parts take more time.",
        ),
        io.Float.Input(
            "enhance_ratio",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.05,
            optional=True,
            advanced=True,
            tooltip="With enhance_tiles: how much of the whole picture is kept beside its parts. Higher values keep "
            "more.",
        ),
    ]
