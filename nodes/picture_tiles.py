"""A wide or tall picture on a model, square by square."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..attention.engine.scope import finite
from ..attention.families.weight_types import WeightType
from ..attention.functional.key_scaling import KeyScaling
from ..attention.functional.picture_sums import PictureSum
from ..host.instantstyle.adapter import LoadedAdapter
from ..host.ip_adapter.applying import Listening
from ..host.ip_adapter.sources import PictureReader
from ..host.ip_adapter.tiles import apply_tiles, cut_into_tiles
from .inputs import IP_ADAPTER_CATEGORY, fraction_input
from .listening_inputs import (
    adapter_input,
    combine_input,
    encoder_input,
    scaling_input,
    weight_input,
    weight_type_input,
    window_inputs,
)
from .parsing import listed_weights


class ApplyAdapterTiles(io.ComfyNode):
    """IP-Adapter (arXiv:2308.06721), a tile for each part of the image. Help page SemblanceApplyAdapterTiles."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SemblanceApplyAdapterTiles",
            display_name="Apply IP-Adapter in Tiles",
            category=IP_ADAPTER_CATEGORY,
            description="Puts all of a wide or tall picture on a model: it is cut into squares, and each acts in its "
            "own part of the image. A square picture becomes four, and gives finer details.",
            search_aliases=["ipadapter tiled", "ipadapter tiled batch", "wide picture", "panorama reference", "tiles"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="An SD 1.5 or SDXL model. It is not changed; a patched copy comes out."
                ),
                adapter_input(
                    "From Load IP-Adapter by Kind, or from Load IP-Adapter with an image encoder at 'clip_vision'."
                ),
                io.Image.Input("image", tooltip="A picture, or a batch of them of one size."),
                weight_input(
                    "weight",
                    3.0,
                    "How strongly the picture acts: 0 turns it off, 1 is as trained. Higher values follow it more. A "
                    "list from another node gives each image of the batch its own, with per_image.",
                ),
                weight_type_input(),
                combine_input(),
                *window_inputs(),
                fraction_input(
                    "sharpening",
                    0.0,
                    "How much the tiles are sharpened. Higher values bring out more detail; 0 turns it off.",
                    step=0.05,
                ),
                scaling_input(),
                io.Image.Input(
                    "image_negative",
                    optional=True,
                    tooltip="A picture of what to steer away from. Without it the negative side sees nothing, or with "
                    "plus adapters a black picture.",
                ),
                io.Mask.Input(
                    "attn_mask",
                    optional=True,
                    tooltip="The area where the picture acts, in white; grey counts in part. Passes by tiles (Ultimate "
                    "SD Upscale, detailers) take each tile for a whole picture: bypass this node there.",
                ),
                encoder_input(),
                io.Boolean.Input(
                    "per_image",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Gives the first picture to the first image of the batch, the second to the second, and so "
                    "on. With too few pictures the last one holds for the rest.",
                ),
            ],
            outputs=[
                io.Model.Output("model", tooltip="The model with the tiles on it, for any sampler."),
                io.Image.Output("tiles", tooltip="The squares, 256 x 256, row by row."),
                io.Mask.Output("masks", tooltip="Where each square acts, in white."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        ipadapter: LoadedAdapter,
        image: Tensor,
        weight: float | Sequence[float],
        weight_type: WeightType,
        combine_embeds: PictureSum,
        start_at: float,
        end_at: float,
        sharpening: float,
        embeds_scaling: KeyScaling,
        image_negative: Tensor | None = None,
        attn_mask: Tensor | None = None,
        clip_vision: Any = None,
        per_image: bool = False,
    ) -> io.NodeOutput:
        listening = Listening(
            weights=listed_weights(weight, each=per_image),
            kind=weight_type,
            how=combine_embeds,
            scaling=embeds_scaling,
            start=start_at,
            end=end_at,
            per_image=per_image,
        )
        tiles = cut_into_tiles(image, finite(sharpening, "The sharpening"), attn_mask)
        patched = apply_tiles(model, PictureReader(ipadapter, clip_vision), tiles, listening, image_negative)
        return io.NodeOutput(patched, torch.cat(tiles.pictures), torch.cat(tiles.masks))
