"""Regions of an image, each with a picture and words of its own."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..attention.engine.scope import finite
from ..attention.families.weight_types import WeightType
from ..host.ip_adapter.regions import Region as RegionValue
from ..host.ip_adapter.regions import Regions, within_mask
from . import sockets
from .inputs import IP_ADAPTER_CATEGORY
from .listening_inputs import weight_input, weight_type_input, window_inputs
from .parsing import listed_weights

FEWEST, MOST = 2, 5


class Region(io.ComfyNode):
    """A picture, words and a mask in one. No template; help page SemblanceRegion."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SemblanceRegion",
            display_name="Region",
            category=IP_ADAPTER_CATEGORY,
            description="Gives an area of the image a picture, and the same area to its prompts. Join several with "
            "Combine Regions; Apply IP-Adapter takes them at 'image'.",
            search_aliases=["ipadapter regional conditioning", "regional prompt", "area picture", "attention mask"],
            inputs=[
                io.Image.Input("image", tooltip="The picture of this area, or a batch of them."),
                weight_input(
                    "image_weight", 3.0, "How strongly the picture acts in the area. Higher values follow it more."
                ),
                io.Float.Input(
                    "prompt_weight",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    tooltip="How strongly the prompts act in the area. Higher values follow them more.",
                ),
                weight_type_input(),
                *window_inputs(),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="The area, in white. Without one, picture and prompts are for the whole image.",
                ),
                io.Conditioning.Input("positive", optional=True, tooltip="What the area should show, in words."),
                io.Conditioning.Input("negative", optional=True, tooltip="What the area should not show, in words."),
            ],
            outputs=[
                sockets.Regions.Output("regions", tooltip="For Combine Regions, or 'image' of Apply IP-Adapter."),
                io.Conditioning.Output(
                    "positive", tooltip="The words for this area alone, for Conditioning (Combine)."
                ),
                io.Conditioning.Output(
                    "negative", tooltip="The negative words for this area alone, for Conditioning (Combine)."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        image: Tensor,
        image_weight: float,
        prompt_weight: float,
        weight_type: WeightType,
        start_at: float,
        end_at: float,
        mask: Tensor | None = None,
        positive: Any = None,
        negative: Any = None,
    ) -> io.NodeOutput:
        (weight,) = listed_weights(image_weight, each=False)
        region = RegionValue(image, weight, weight_type, start_at, end_at, mask)
        words = finite(prompt_weight, "The weight of the prompts")
        sides = {"positive": positive, "negative": negative}
        prompts = (within_mask(side, mask, words, name) for name, side in sides.items())
        return io.NodeOutput((region,), *prompts)


class CombineRegions(io.ComfyNode):
    """Several regions in a row. No template; help page SemblanceCombineRegions."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SemblanceCombineRegions",
            display_name="Combine Regions",
            category=IP_ADAPTER_CATEGORY,
            description="Joins two to five regions for Apply IP-Adapter. Where their masks overlap, their pictures add "
            "up.",
            search_aliases=["ipadapter combine params", "regional conditioning", "merge regions"],
            inputs=[
                sockets.Regions.Input(
                    f"params_{place}",
                    f"regions{place}",
                    optional=place > FEWEST,
                    tooltip="From Region, or from another Combine Regions.",
                )
                for place in range(1, MOST + 1)
            ],
            outputs=[sockets.Regions.Output("regions", tooltip="All regions, for 'image' of Apply IP-Adapter.")],
        )

    @classmethod
    def execute(
        cls,
        params_1: Regions,
        params_2: Regions,
        params_3: Regions = (),
        params_4: Regions = (),
        params_5: Regions = (),
    ) -> io.NodeOutput:
        return io.NodeOutput((*params_1, *params_2, *params_3, *params_4, *params_5))
