"""Load Demo Model: the small models that come with the pack."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..host.demo_models import TOPOLOGIES, load_demo
from .inputs import CATEGORY


class LoadDemo(io.ComfyNode):
    """The models in demo/models, trained by demo/. Templates *_demo; help page SemblanceLoadDemo."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SemblanceLoadDemo",
            display_name="Load Demo Model",
            category=CATEGORY,
            description="Opens a small model that comes with Semblance, so that you can try a graph at once. It draws "
            "24 figures, from cats to rockets, in many styles at 128 x 128 pixels, in seconds on a CPU. It is for "
            "trying and testing only; for pictures of your own load a real checkpoint.",
            search_aliases=["demo", "example model", "small model", "tiny model", "try semblance"],
            inputs=[
                io.Combo.Input(
                    "topology",
                    options=list(TOPOLOGIES),
                    tooltip="The family whose blocks the model has, at small widths. SDXL and SD 1.5 have IP-Adapters "
                    "of their own in Load IP-Adapter: semblance_demo_sdxl and semblance_demo_sd15. Flux is for "
                    "Reference Style and StyleID. aMUSEd is a masked transformer, for Tune Style and StyleDrop Guider; "
                    "sample it with Masked Sampler.",
                )
            ],
            outputs=[
                io.Model.Output(
                    "model",
                    tooltip="For InstantStyle and other model nodes, then KSampler; for aMUSEd, CFGGuider or StyleDrop "
                    "Guider. Sample at 128 x 128.",
                ),
                io.Clip.Output("clip", tooltip="For CLIP Text Encode, e.g. a cat on the left, ocean colours, dotted."),
                io.Vae.Output("vae", tooltip="For VAE Encode and VAE Decode."),
                io.ClipVision.Output(
                    "clip_vision", tooltip="For Encode Style Reference, Apply IP-Adapter and CLIP Score."
                ),
                io.Image.Output(
                    "style_picture",
                    tooltip="A drawing in a style that the model can follow, for nodes that take one from a picture.",
                ),
            ],
        )

    @classmethod
    def execute(cls, topology: Any) -> io.NodeOutput:
        demo = load_demo(topology)
        return io.NodeOutput(demo.model, demo.clip, demo.vae, demo.clip_vision, demo.style_picture)
