"""InstantStyle on a MODEL."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..attention.engine.scope import ImageMask, ScheduleWindow, Scope, finite
from ..attention.methods.instantstyle import MASKS_BY, MasksBy
from ..host.binding.model import add_patch
from ..host.instantstyle.applying import map_styled, style_patch
from ..host.instantstyle.encoding import EncodedStyle
from . import sockets
from .inputs import CATEGORY, blocks_input, curve_input, fraction_input, missing_choice, read_blocks, read_curve


class InstantStyle(io.ComfyNode):
    """InstantStyle (arXiv:2404.02733). Templates instantstyle*; help page SemblanceInstantStyle."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SemblanceInstantStyle",
            display_name="InstantStyle",
            category=CATEGORY,
            description="Gives a model the style of a reference, through an IP-Adapter that acts only in the blocks "
            "that carry style. Chain several for several styles or regions; other packs may come before or after.",
            search_aliases=["ipadapter", "ip-adapter", "style transfer", "reference only", "apply ipadapter", "style"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="An SD 1.5, SDXL or Flux model. It is not changed; a patched copy comes out."
                ),
                sockets.Reference.Input("reference", tooltip="The style, from Encode Style Reference or Load Style."),
                blocks_input(),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-2.0,
                    max=3.0,
                    step=0.05,
                    tooltip="How strongly the reference acts: 0 turns it off, 1 is as trained. Higher values follow "
                    "the reference more, but far above 1 the image suffers. Negative values steer away from it.",
                ),
                fraction_input(
                    "start",
                    0.0,
                    "When the style begins to act, as a fraction of the noise schedule (not of the steps), like "
                    "ComfyUI's own start_percent. Higher values begin later and leave the layout to the prompt.",
                ),
                fraction_input(
                    "end",
                    1.0,
                    "When the style stops acting, as a fraction of the noise schedule (not of the steps). Lower values "
                    "stop earlier and leave fine texture to the prompt.",
                ),
                curve_input(),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="The area where the style applies, in white. One mask, one for each picture of the "
                    "reference, or one for each image of the batch; any size. Passes by tiles (Ultimate SD Upscale, "
                    "detailers) take each tile for a whole picture: bypass the mask there.",
                ),
                io.Combo.Input(
                    "mask_edges",
                    options=["soft", "hard"],
                    optional=True,
                    advanced=True,
                    tooltip="'soft' keeps the mask's feathering; 'hard' cuts it at half grey, as the authors' code "
                    "does.",
                ),
                io.Combo.Input(
                    "masks_by",
                    options=list(MASKS_BY),
                    optional=True,
                    advanced=True,
                    tooltip="What several masks stand for: 'per picture' gives each reference picture its area, 'per "
                    "image' each image of the batch. 'auto' goes by their number; if both fit, they are per picture.",
                ),
            ],
            outputs=[io.Model.Output("model", tooltip="The model with the style on it, for any sampler.")],
        )

    @classmethod
    def validate_inputs(cls, model: Any = None, blocks: Any = None, curve: Any = None) -> bool | str:
        # ComfyUI leaves out a choice it does not know. It wants the complaint on an input it did pass, hence `model`.
        return missing_choice(blocks=blocks, curve=curve)

    @classmethod
    def execute(
        cls,
        model: Any,
        reference: EncodedStyle,
        blocks: dict[str, Any],
        strength: float,
        start: float,
        end: float,
        curve: dict[str, Any],
        mask: Tensor | None = None,
        mask_edges: str = "soft",
        masks_by: MasksBy = "auto",
    ) -> io.NodeOutput:
        model_map = map_styled(model)
        reference.adapter.numbers_for(model_map)  # a wrong adapter is to be told of before a wrong block
        area = None if mask is None else ImageMask(mask, feather=mask_edges == "soft")
        scope = Scope(read_blocks(blocks, model_map), ScheduleWindow(start, end, read_curve(curve)), area)
        patch = style_patch(reference, model_map, scope, finite(strength, "The strength"), masks_by)
        return io.NodeOutput(add_patch(model, patch))
