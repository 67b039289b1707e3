"""StyleID on a MODEL."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..attention.engine.scope import ImageMask, ScheduleWindow, Scope, finite
from ..attention.families import STYLEID
from ..attention.methods.styleid.method import StyleID as StyleIDPatch
from ..attention.references.trajectory import ReferenceTrajectory
from ..host.binding.model import add_patch
from ..host.inversion.solver import retracing_sampler
from ..host.inversion.styleid_start import START_MODES, StartMode, check_pair, family_for, form_for, start_of
from . import sockets
from .inputs import CATEGORY, CUSTOM, custom_blocks_of, fraction_input, missing_choice

PRESETS: dict[str, tuple[float, float]] = {
    "balanced": (StyleIDPatch.gamma, StyleIDPatch.temperature),
    "high style": (0.3, 1.5),
    "faithful": (0.9, 1.5),
}
"""gamma and temperature; the first two are the authors'."""
FAMILY_BLOCKS = "family"
CHOICES = {"preset": (*PRESETS, CUSTOM), "blocks": (FAMILY_BLOCKS, CUSTOM)}


class StyleID(io.ComfyNode):
    """StyleID (arXiv:2312.09008), and on flow models a form of ours. Templates styleid, styleid_sdxl; help page
    SemblanceStyleID.
    """

    @classmethod
    def define_schema(cls) -> io.Schema:
        gamma = fraction_input(
            "gamma",
            PRESETS["balanced"][0],
            "Weight of the content's own queries. 1 keeps its structure; lower values follow the style more.",
        )
        temperature = io.Float.Input(
            "temperature",
            default=PRESETS["balanced"][1],
            min=0.1,
            max=5.0,
            step=0.05,
            tooltip="How sharply the content attends to the style's textures. Higher values are sharper; below 1 the "
            "image looks washed out. The authors use 1.5.",
        )
        weights = io.String.Input(
            "weights",
            default="",
            tooltip="Blocks with their weights, e.g. output.6=1.0, output.7=0.5 on a UNet, or double.9=1.0 on Flux. A "
            "block with a higher weight takes on more of the style. Empty: the blocks of 'family'. If a name is wrong, "
            "the error lists the right ones.",
        )
        return io.Schema(
            node_id="SemblanceStyleID",
            display_name="StyleID",
            category=CATEGORY,
            description="Paints one picture in the style of another and keeps its structure. The content is sampled "
            "again from its own noise, with the keys and values of the style. Both pictures come from Invert Image. "
            "Sample with this node's latent, sigmas and sampler, at CFG 1.",
            search_aliases=["style injection", "style transfer", "training-free style", "photo to painting"],
            inputs=[
                io.Model.Input("model", tooltip="The model both pictures were inverted with; it is not changed."),
                sockets.Trajectory.Input("content", tooltip="The picture to paint again, from Invert Image."),
                sockets.Trajectory.Input("style", tooltip="The picture whose style is taken, from Invert Image."),
                io.DynamicCombo.Input(
                    "preset",
                    options=[
                        *(io.DynamicCombo.Option(name, []) for name in PRESETS),
                        io.DynamicCombo.Option(CUSTOM, [gamma, temperature]),
                    ],
                    tooltip="'balanced' is the authors' default, 'high style' their setting for more style, 'faithful' "
                    "keeps more of the content. 'custom' sets gamma and temperature yourself.",
                ),
                io.DynamicCombo.Input(
                    "blocks",
                    options=[
                        io.DynamicCombo.Option(FAMILY_BLOCKS, []),
                        io.DynamicCombo.Option(CUSTOM, [weights]),
                    ],
                    tooltip="The blocks that take the style's keys and values. 'family' is the authors' choice on SD "
                    "1.5, our own on SDXL, and the later half of the blocks on a flow model; 'custom' sets a weight "
                    "for each block.",
                ),
                fraction_input(
                    "strength",
                    1.0,
                    "0 samples the content without the style; 1 is the full method. Values between mix the two in each "
                    "attention.",
                    step=0.05,
                ),
                fraction_input(
                    "adain",
                    1.0,
                    "How much of the style's colours the starting noise takes on (AdaIN). Higher values take on more.",
                    step=0.05,
                ),
                io.Combo.Input(
                    "start_mode",
                    options=list(START_MODES),
                    tooltip="'official' follows the authors' code: it skips the first step and starts from a latent "
                    "one noise level too high. 'exact' starts where the inversion ended, as flow models always do.",
                ),
                fraction_input(
                    "start",
                    0.0,
                    "When the style begins to act, as a fraction of the noise schedule (not of the steps). Higher "
                    "values leave more of the first steps without style.",
                ),
                fraction_input(
                    "end",
                    1.0,
                    "When the style stops acting, as a fraction of the noise schedule (not of the steps). Lower values "
                    "leave more of the last steps without style.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="The area that takes on the style, in white; elsewhere the content stays. One mask for all "
                    "images, or one for each. Passes by tiles (Ultimate SD Upscale, detailers) take each tile for a "
                    "whole picture: bypass StyleID there.",
                ),
            ],
            outputs=[
                io.Model.Output("model", tooltip="The model with the style on it."),
                io.Latent.Output(
                    "latent", tooltip="The latent that sampling starts from, for a sampler that adds no noise."
                ),
                io.Sigmas.Output("sigmas", tooltip="The noise levels of the steps, for SamplerCustom."),
                io.Sampler.Output(
                    "sampler",
                    tooltip="For SamplerCustom: Euler, or the midpoint rule on a flow model, where no other can begin "
                    "from the latent. It adds no noise, whether add_noise is on or off.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, model: Any = None, preset: Any = None, blocks: Any = None) -> bool | str:
        # ComfyUI leaves out a choice it does not know. It wants the complaint on an input it did pass, hence `model`.
        return missing_choice(CHOICES, preset=preset, blocks=blocks)

    @classmethod
    def execute(
        cls,
        model: Any,
        content: ReferenceTrajectory,
        style: ReferenceTrajectory,
        preset: dict[str, Any],
        blocks: dict[str, Any],
        strength: float,
        adain: float,
        start_mode: StartMode,
        start: float,
        end: float,
        mask: Tensor | None = None,
    ) -> io.NodeOutput:
        check_pair(model, content, style)
        gamma, temperature = PRESETS.get(preset["preset"]) or (preset["gamma"], preset["temperature"])
        named = blocks["weights"] if blocks["blocks"] == CUSTOM else ""
        weights = custom_blocks_of(family_for(model), named, STYLEID)
        scope = Scope(weights, ScheduleWindow(start, end), None if mask is None else ImageMask(mask))
        patch = form_for(model)(
            content,
            style,
            scope,
            finite(gamma, "gamma"),
            finite(temperature, "The temperature"),
            finite(strength, "The strength"),
        )
        begin = start_of(model, content, style, start_mode, finite(adain, "AdaIN"))
        sampler = retracing_sampler(content)
        return io.NodeOutput(add_patch(model, patch), {"samples": begin.latent}, begin.sigmas, sampler)
