"""Pictures inverted for editing: the noise of every sampling step that leads to them."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..attention.engine.scope import finite
from ..host.conditioning import Conditioning, text_for
from ..host.inversion.cache import cached_inversion
from ..host.inversion.edit_friendly import draw_noises, invert_edit_friendly, replay, replay_sampler, start_after
from ..host.inversion.report import NOT_CHECKED, reconstruction_report
from ..host.inversion.runs import Inversion
from ..host.latents import picture_latents
from ..version import VERSION
from . import sockets
from .inputs import (
    CATEGORY,
    fraction_input,
    inversion_check_input,
    inversion_guidance_input,
    inversion_steps_input,
    inversion_text_input,
    inversion_vae_input,
)
from .reports import reported


class InvertEditFriendly(io.ComfyNode):
    """Edit-friendly DDPM (arXiv:2304.06140). Template consistory_personalise; help page SemblanceInvertEditFriendly."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SemblanceInvertEditFriendly",
            display_name="Invert Image (edit-friendly)",
            category=CATEGORY,
            description="Finds the noise of every sampling step that leads to a real picture. Sampling with these "
            "noises and the picture's own prompt gives the picture back; another prompt edits it and keeps its layout. "
            "Connect latent, sampler and sigmas to SamplerCustom.",
            search_aliases=[
                "edit friendly",
                "ddpm inversion",
                "ledits",
                "invert",
                "unsampler",
                "edit real image",
                "prompt to prompt",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The SD 1.5 or SDXL model you will sample with."),
                io.Latent.Input(
                    "pictures", tooltip="The picture, from VAE Encode. All pictures of a batch are inverted together."
                ),
                inversion_text_input(
                    "A prompt that describes the picture: one for all pictures, or a batch with one for each. Connect "
                    "a CLIP for the empty prompt. If nothing is connected, the text is all zeros."
                ),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="The text that guidance steers away from; in the paper it is the empty prompt. If nothing "
                    "is connected, it is all zeros.",
                ),
                inversion_vae_input(),
                inversion_steps_input(
                    "Number of steps from the picture to the noise; more take longer. The paper uses 100. Sampling "
                    "takes the same steps, without those that skip leaves out."
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=False,
                    tooltip="Seed of the noises that the picture is hidden in. Another seed gives other edits.",
                ),
                inversion_guidance_input(
                    3.5,
                    "CFG during the inversion; the paper uses 3.5. It has an effect only if text is a prompt or "
                    "negative is connected.",
                ),
                fraction_input(
                    "skip",
                    0.36,
                    "Fraction of the steps that an edit leaves out at the start. Higher values stay closer to the "
                    "picture. The paper uses 0.36.",
                    advanced=True,
                ),
                inversion_check_input(),
            ],
            outputs=[
                sockets.Trajectory.Output(
                    "trajectory", tooltip="The pictures at every noise level, with the noise of every step."
                ),
                io.Latent.Output(
                    "latent", tooltip="The latent that sampling starts from, for a sampler that adds no noise."
                ),
                io.Sampler.Output(
                    "sampler", tooltip="A sampler that takes the found noise at each step, for SamplerCustom."
                ),
                io.Sigmas.Output("sigmas", tooltip="The noise levels of the steps, for SamplerCustom."),
                io.String.Output("report", tooltip="How well the picture comes back. Also shown on the node."),
            ],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        pictures: dict[str, Any],
        steps: int,
        seed: int,
        guidance: float,
        skip: float,
        check: bool,
        text: Any = None,
        negative: Conditioning | None = None,
        vae: Any = None,
    ) -> io.NodeOutput:
        latents, indices = picture_latents(pictures), pictures.get("batch_index")
        conditioning = text_for(model, text, finite(guidance, "The guidance"), negative)

        def make() -> Inversion:
            return invert_edit_friendly(model, latents, steps, conditioning, draw_noises(latents, steps, seed, indices))

        settings = ("edit-friendly", steps, seed, indices)
        trajectory = cached_inversion(model, latents, settings, conditioning, make, VERSION).trajectory
        skipped = min(round(steps * finite(skip, "The share to skip")), steps - 1)
        report = NOT_CHECKED
        if check:
            report = reconstruction_report(model, trajectory, replay(model, trajectory, conditioning, skipped), vae)
        start = start_after(model, trajectory, skipped)
        latent = {"samples": start.latent}
        return reported(cls, report, trajectory, latent, replay_sampler(trajectory), start.sigmas, report)
