"""The node AdaIN Latent."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..attention.engine.scope import finite
from ..host.latents import adain_latent
from .inputs import CATEGORY, fraction_input


class AdaINLatent(io.ComfyNode):
    """AdaIN (arXiv:1703.06868) as in StyleID. Template adain_latent; help page SemblanceAdaINLatent."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SemblanceAdaINLatent",
            display_name="AdaIN Latent",
            category=CATEGORY,
            description="Gives a latent the mean and deviation of a style latent, channel by channel, so that it takes "
            "on the style's colours and contrast. Both must be at the same noise level, e.g. both from VAE Encode or "
            "both from Invert Image.",
            search_aliases=["adain", "match colors", "color transfer", "latent statistics", "instance normalization"],
            inputs=[
                io.Latent.Input("content", tooltip="The latent to change."),
                io.Latent.Input("style", tooltip="The latent whose statistics are used, of any size."),
                fraction_input(
                    "strength",
                    1.0,
                    "0 leaves the content as it is; 1 takes on the style's statistics fully.",
                    step=0.05,
                ),
                io.Mask.Input("mask", optional=True, tooltip="The area of the content to change, in white. Any size."),
            ],
            outputs=[io.Latent.Output("latent", tooltip="The content with the style's statistics.")],
        )

    @classmethod
    def execute(
        cls, content: dict[str, Any], style: dict[str, Any], strength: float, mask: Tensor | None = None
    ) -> io.NodeOutput:
        return io.NodeOutput(adain_latent(content, style, finite(strength, "The strength"), mask))
