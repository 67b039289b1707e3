"""Load Masked Transformer and Masked Sampler: aMUSEd (arXiv:2401.01808) in ComfyUI's own graph."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..host.files import TEXT_ENCODERS, find_file
from ..host.masked.files import DIFFUSION_MODELS, PUBLISHED, VAES
from ..host.masked.loading import MaskedFiles, load_masked
from ..host.masked.sampler import DECODERS, STEPS, TEMPERATURE, MaskSchedule, masked_sampler
from .inputs import CATEGORY, file_options, missing_file

DTYPES = {"default": None, "fp8_e4m3fn": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}


class LoadMaskedTransformer(io.ComfyNode):
    """aMUSEd's published files. Help page SemblanceLoadMaskedTransformer."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SemblanceLoadMaskedTransformer",
            display_name="Load Masked Transformer",
            category=CATEGORY,
            description="Opens the three files of an aMUSEd model, which finds the tokens of a picture instead of "
            "removing noise, as MODEL, CLIP and VAE. Sample it with Masked Sampler and SamplerCustomAdvanced, at 256 "
            "or 512 pixels.",
            search_aliases=["amused", "muse", "maskgit", "masked transformer", "vq", "styledrop"],
            inputs=[
                io.Combo.Input(
                    "transformer",
                    options=file_options(DIFFUSION_MODELS),
                    tooltip="The transformer of aMUSEd, in models/diffusion_models. It is recognised by its contents, "
                    "so the file may have any name.",
                ),
                io.Combo.Input(
                    "vq",
                    options=file_options(VAES),
                    tooltip="The VQ model of the same repository, in models/vae. It makes tokens of pictures and "
                    "pictures of tokens.",
                ),
                io.Combo.Input(
                    "text_encoder",
                    options=file_options(TEXT_ENCODERS),
                    tooltip="The text encoder of the same repository, in models/text_encoders.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(DTYPES),
                    default="default",
                    advanced=True,
                    tooltip="How the transformer's weights are kept. fp8 takes half the memory of fp16 and changes the "
                    "picture a little.",
                ),
            ],
            outputs=[
                io.Model.Output("model", tooltip="For CFGGuider or StyleDrop's guider, CFG about 10."),
                io.Clip.Output("clip", tooltip="For CLIP Text Encode. Other CLIPs do not fit this model."),
                io.Vae.Output(
                    "vae", tooltip="For VAE Encode and VAE Decode. Its latent holds tokens, which cannot be blended."
                ),
            ],
        )

    @classmethod
    def validate_inputs(
        cls, transformer: str | None = None, vq: str | None = None, text_encoder: str | None = None
    ) -> bool | str:
        checks = (
            missing_file(transformer, DIFFUSION_MODELS, published=PUBLISHED["transformer"]),
            missing_file(vq, VAES, published=PUBLISHED["VQ model"]),
            missing_file(text_encoder, TEXT_ENCODERS, published=PUBLISHED["text encoder"]),
        )
        return next((check for check in checks if check is not True), True)

    @classmethod
    def execute(cls, transformer: str, vq: str, text_encoder: str, weight_dtype: str = "default") -> io.NodeOutput:
        files = MaskedFiles(
            find_file(transformer, DIFFUSION_MODELS, published=PUBLISHED["transformer"]),
            find_file(vq, VAES, published=PUBLISHED["VQ model"]),
            find_file(text_encoder, TEXT_ENCODERS, published=PUBLISHED["text encoder"]),
            DTYPES[weight_dtype],
        )
        parts = load_masked(files)
        return io.NodeOutput(parts.model, parts.clip, parts.vae)


class MaskedSampler(io.ComfyNode):
    """MaskGIT's way to sample (arXiv:2202.04200). Help page SemblanceMaskedSampler."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SemblanceMaskedSampler",
            display_name="Masked Sampler",
            category=CATEGORY,
            description="The sampler of a masked transformer: in each step it finds all missing tokens, keeps the "
            "surest and masks the others again. Connect both outputs to SamplerCustomAdvanced. An Empty Latent Image "
            "is all masked; an encoded picture, with a noise mask or a lower denoise, keeps the rest.",
            search_aliases=["amused sampler", "maskgit", "muse", "masked decoding", "token sampler"],
            inputs=[
                io.Int.Input(
                    "steps",
                    default=STEPS,
                    min=1,
                    max=1000,
                    tooltip="How many steps find the tokens. aMUSEd's authors take 12. More steps find fewer tokens at "
                    "a time.",
                ),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="Which share of the schedule is run, for image to image. A lower value masks fewer of the "
                    "picture's tokens and keeps more of it. With a noise mask everything under it is made anew, in the "
                    "last part of the schedule; a token counts as under it where the mask is 0.5 or more in its "
                    "middle.",
                ),
                io.Float.Input(
                    "temperature",
                    default=TEMPERATURE[0],
                    min=0.0,
                    max=20.0,
                    step=0.1,
                    tooltip="How freely tokens are chosen in the first step. A higher value gives more variety and "
                    "less order. aMUSEd's authors take 2, the port of MUSE 4.5.",
                ),
                io.Float.Input(
                    "end_temperature",
                    default=TEMPERATURE[1],
                    min=0.0,
                    max=20.0,
                    step=0.1,
                    advanced=True,
                    tooltip="The same in the last step, reached along a straight line. A higher value keeps the choice "
                    "free to the end.",
                ),
                io.Combo.Input(
                    "decoder",
                    options=list(DECODERS),
                    default=DECODERS[0],
                    advanced=True,
                    tooltip="How tokens are drawn and judged. aMUSEd draws by probability and lets only the masking "
                    "vary; MUSE, as in the public port on which StyleDrop was repeated, lets both vary with the "
                    "temperature, and masks as many tokens in every image as in the first.",
                ),
            ],
            outputs=[
                io.Sampler.Output("sampler", tooltip="For SamplerCustomAdvanced or SamplerCustom."),
                io.Sigmas.Output(
                    "sigmas",
                    tooltip="For the same node. Each value is the share of tokens that are masked, from 1 to 0.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        steps: int,
        denoise: float = 1.0,
        temperature: float = 2.0,
        end_temperature: float = 0.0,
        decoder: Any = DECODERS[0],
    ) -> io.NodeOutput:
        # As ComfyUI's schedulers read denoise: `steps` are run, of as many more as make them that share.
        schedule = MaskSchedule(max(int(steps / denoise), steps), (temperature, end_temperature), decoder)
        return io.NodeOutput(masked_sampler(schedule), schedule.sigmas(steps))
