"""Pictures inverted to noise: made, kept in files, and their statistics carried over."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..attention.engine.scope import finite
from ..attention.functional.inversion import DDIM_CONVENTIONS, DDIMConvention
from ..attention.references.trajectory import ReferenceTrajectory
from ..host.conditioning import text_for
from ..host.files import TRAJECTORIES
from ..host.inversion.cache import cached_inversion
from ..host.inversion.report import NOT_CHECKED, reconstruction_report
from ..host.inversion.runs import Inversion, falling_levels
from ..host.inversion.solver import convention_for, invert, retracing_sampler, sample_back
from ..host.inversion.trajectory_files import load_trajectory, save_trajectory
from ..host.latents import joined_latents
from ..version import VERSION
from . import sockets
from .inputs import (
    CATEGORY,
    file_fingerprint,
    file_options,
    inversion_check_input,
    inversion_guidance_input,
    inversion_steps_input,
    inversion_text_input,
    inversion_vae_input,
    missing_file,
)
from .reports import reported


class InvertImage(io.ComfyNode):
    """DDIM inversion (arXiv:2010.02502), or a flow's by the midpoint rule, for StyleID. Templates styleid*; help page
    SemblanceInvertImage.
    """

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SemblanceInvertImage",
            display_name="Invert Image (DDIM, flow)",
            category=CATEGORY,
            description="Finds the noise from which the model would make a given picture, and keeps the latent of "
            "every step. Content and style are inverted together if both are connected. The report says how well the "
            "picture comes back. SD 1.5 and SDXL are inverted by DDIM; flow models, such as Flux, SD 3.5, Qwen-Image "
            "and Z-Image, by the midpoint rule, with two calls a step.",
            search_aliases=[
                "ddim inversion",
                "rectified flow inversion",
                "flux inversion",
                "invert",
                "unsampler",
                "styleid",
                "reverse sampling",
                "noise from image",
            ],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model you will sample with: SD 1.5, SDXL, or a flow model such as Flux, SD 3.5, "
                    "Qwen-Image or Z-Image.",
                ),
                io.Latent.Input(
                    "content", tooltip="The picture, from VAE Encode. All pictures of a batch are inverted together."
                ),
                io.Latent.Input(
                    "style",
                    optional=True,
                    tooltip="A second picture of the same size, e.g. the style. Both are inverted together.",
                ),
                inversion_text_input(
                    "The CLIP, for the empty prompt that StyleID's authors use, or a prompt of your own. If nothing is "
                    "connected, the text is all zeros; a flow model needs one of the two."
                ),
                inversion_vae_input(),
                inversion_steps_input(
                    "Number of steps from the picture to the noise. More steps bring the picture back more exactly. "
                    "Sample with the same number later. On a flow model each step costs two calls, so 20 steps cost 40."
                ),
                io.Combo.Input(
                    "convention",
                    options=list(DDIM_CONVENTIONS),
                    tooltip="The code whose timesteps are followed exactly: 'styleid' is that of StyleID's authors, "
                    "which ends at timestep 999; 'ddim' is diffusers' DDIMInverseScheduler. Flow models do not ask for "
                    "it: they have 'midpoint' alone, which is ours.",
                ),
                inversion_guidance_input(
                    1.0,
                    "CFG during the inversion, against empty text. Above 1 the picture comes back less exactly and "
                    "every step costs twice as much. A flow model takes 1 alone.",
                    advanced=True,
                ),
                inversion_check_input(),
            ],
            outputs=[
                sockets.Trajectory.Output("content", tooltip="The content's trajectory, for StyleID."),
                io.Latent.Output("noise", tooltip="The content's noise, for this node's sampler."),
                sockets.Trajectory.Output(
                    "style", tooltip="The style's trajectory, for StyleID. The content's if no style is connected."
                ),
                io.String.Output("report", tooltip="How well the picture comes back. Also shown on the node."),
                io.Sigmas.Output(
                    "sigmas", tooltip="The noise levels from the noise back to the picture, for SamplerCustom."
                ),
                io.Sampler.Output(
                    "sampler",
                    tooltip="The sampler that goes the way back, for SamplerCustom. It adds no noise. On a flow model "
                    "no other sampler can begin from the noise.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        content: dict[str, Any],
        steps: int,
        convention: DDIMConvention,
        guidance: float,
        check: bool,
        style: dict[str, Any] | None = None,
        text: Any = None,
        vae: Any = None,
    ) -> io.NodeOutput:
        pictures = joined_latents(content, style)
        conditioning = text_for(model, text, finite(guidance, "The guidance"))
        way = convention_for(model, convention)

        def make() -> Inversion:
            return invert(model, pictures, steps, way, conditioning)

        inversion = cached_inversion(model, pictures, (steps, way), conditioning, make, VERSION)
        whole, report = inversion.trajectory, NOT_CHECKED
        if check:
            report = reconstruction_report(model, whole, sample_back(model, whole, conditioning), vae)
        count = len(content["samples"])
        first = whole.select(range(count))
        second = whole.select(range(count, whole.images)) if style is not None else first
        noise = {"samples": inversion.noise[:count]}
        sampler = retracing_sampler(first)
        return reported(cls, report, first, noise, second, report, falling_levels(first), sampler)


class SaveTrajectory(io.ComfyNode):
    """Files of inverted pictures, read by LoadTrajectory. No template; help page SemblanceSaveTrajectory."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SemblanceSaveTrajectory",
            display_name="Save Trajectory",
            category=CATEGORY,
            description="Writes an inverted picture as one safetensors file in models/semblance/trajectories, so that "
            "you need not invert it again. If the name is taken, a number is added; nothing is overwritten.",
            search_aliases=["save inversion", "keep inversion", "trajectory file"],
            inputs=[
                sockets.Trajectory.Input("trajectory", tooltip="From Invert Image."),
                io.String.Input("name", default="my picture", tooltip="Name of the file. A slash makes a folder."),
                io.Combo.Input(
                    "precision",
                    options=["float32", "float16"],
                    tooltip="float16 halves the file. The node shows the error that this causes, about 2 in 10,000.",
                ),
            ],
            outputs=[io.String.Output("file", tooltip="Name of the file that was written.")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, trajectory: ReferenceTrajectory, name: str, precision: str) -> io.NodeOutput:
        half = precision == "float16"
        file, error = save_trajectory(trajectory, name, VERSION, half)
        size = trajectory.bytes / (2 if half else 1) / 2**20
        report = f"{file}: {trajectory!r}, {size:.1f} MB" + (f", relative error {error:.1e}" if half else "")
        return reported(cls, report, file)


class LoadTrajectory(io.ComfyNode):
    """Files of inverted pictures, written by SaveTrajectory. No template; help page SemblanceLoadTrajectory."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SemblanceLoadTrajectory",
            display_name="Load Trajectory",
            category=CATEGORY,
            description="Opens an inverted picture saved by Save Trajectory. Use it with the model that it was "
            "inverted with.",
            search_aliases=["load inversion", "trajectory file"],
            inputs=[
                io.Combo.Input(
                    "file", options=file_options(TRAJECTORIES), tooltip="A file in models/semblance/trajectories."
                )
            ],
            outputs=[
                sockets.Trajectory.Output(
                    "trajectory", tooltip="For StyleID, or for ConsiStory's pictures if it is edit-friendly."
                ),
                io.String.Output("report", tooltip="The contents of the file. Also shown on the node."),
            ],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def validate_inputs(cls, file: str | None = None) -> bool | str:
        return missing_file(file, TRAJECTORIES)

    @classmethod
    def fingerprint_inputs(cls, file: str) -> str:
        return file_fingerprint(file, TRAJECTORIES)

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        trajectory = load_trajectory(file)
        return reported(cls, repr(trajectory), trajectory, repr(trajectory))
