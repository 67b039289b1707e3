"""Where the subjects of a story stand."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui
from torch import Tensor

from ..attention.engine.token_masks import PIXELS_PER_LATENT
from ..attention.functional.masks import darken_outside, enlarge
from ..host.subjects.masks import subject_masks_of
from .inputs import CATEGORY


class SubjectMasks(io.ComfyNode):
    """The masks that ConsiStory found, one for each image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SemblanceSubjectMasks",
            display_name="Subject Masks",
            category=CATEGORY,
            description="Shows where ConsiStory found the subject in each image of a story, to see what was shared, or "
            "to use the masks elsewhere. The masks come along with the sampler's latent.",
            search_aliases=["consistory mask", "subject mask", "attention mask", "segment subject", "show masks"],
            inputs=[
                io.Latent.Input("latent", tooltip="What the sampler made with the story's model, as it came out."),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="The same images from VAE Decode. The preview then shows them, dark outside the masks.",
                ),
            ],
            outputs=[
                io.Mask.Output("masks", tooltip="One mask for each image, white where the subject is."),
                io.Image.Output("preview", tooltip="What is shown on the node."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, latent: dict[str, Any], image: Tensor | None = None) -> io.NodeOutput:
        found = subject_masks_of(latent)
        height, width = (side * PIXELS_PER_LATENT for side in latent["samples"].shape[-2:])
        masks = enlarge(found, *((height, width) if image is None else image.shape[1:3]))
        preview = masks.unsqueeze(3).repeat(1, 1, 1, 3) if image is None else darken_outside(image, masks)
        return io.NodeOutput(masks, preview, ui=ui.PreviewImage(preview, cls=cls))
