"""Every transformer family as a value: its tiny model on the host's own classes, and what a sampler needs beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import comfy.ldm.anima.model
import comfy.model_management
import comfy.ops
import comfy.sample
import comfy.supported_models
import torch
from comfy.model_patcher import ModelPatcher
from comfy.supported_models_base import BASE
from torch import Generator, Tensor, nn

from semblance.tests.tiny_models.unets import patcher_around
from semblance.tests.tiny_models.weights import seed_weights, seeded_tensor

from . import configs
from .configs import POOLED_WIDTH, TEXT_WIDTH, Config

Conditioning = list[list[Any]]
Latent = dict[str, Tensor]
Extras = Callable[[Generator, int, int], dict[str, Any]]
"""What a conditioning has besides text, for a number of rows and of tokens."""

# Its thousandfold, which the host embeds, is exact in bfloat16; that of the usual 3.5 is not.
GUIDANCE = 4.0


@dataclass(frozen=True, eq=False)
class TransformerFamily:
    name: str
    supported: type[BASE]  # the host's entry in its list of known models
    config: Config
    extras: Extras
    text_width: int = TEXT_WIDTH

    def model(
        self, seed: int = 0, dtype: torch.dtype = torch.float32, cast: torch.dtype | None = None, **changed: Any
    ) -> ModelPatcher:
        """A MODEL as the host's loaders make it, of weights in `dtype`; it computes in `cast`."""

        def build(disable_dynamic: bool = False) -> ModelPatcher:
            config = self.supported(deepcopy({**self.config, **changed}))
            config.set_inference_dtype(dtype, cast)
            model = config.get_model({}, device=comfy.model_management.unet_offload_device())
            shrink(model.diffusion_model, dtype)
            seed_all(model.diffusion_model, seed)
            return patcher_around(model)

        patcher = build()
        patcher.cached_patcher_init = (build, ())
        return patcher

    def conditioning(self, tokens: int = 7, rows: int = 1, seed: int = 1, **more: Any) -> Conditioning:
        """Random text of `tokens` tokens for `rows` prompts, with all else that the family's encoders give out."""
        noise = Generator().manual_seed(seed)
        text = torch.randn((rows, tokens, self.text_width), generator=noise)
        return [[text, {**self.extras(noise, rows, tokens), **more}]]

    @property
    def channels(self) -> int:
        return self.supported.latent_format.latent_channels

    @property
    def has_frames(self) -> bool:
        """Latents are (images, channels, frames, height, width), of one frame for a picture."""
        return self.supported.latent_format.latent_dimensions == 3

    def latent(self, images: int = 1, height: int = 8, width: int = 8, seed: int | None = None) -> Latent:
        """An empty latent, or noise as loud as an encoded picture's where a seed is given."""
        shape = (images, self.channels, *((1,) if self.has_frames else ()), height, width)
        if seed is None:
            return {"samples": torch.zeros(shape)}
        return {"samples": torch.randn(shape, generator=Generator().manual_seed(seed))}


def shrink(transformer: nn.Module, dtype: torch.dtype) -> None:
    """Puts a narrow text adapter into Anima, whose class makes one of 130 million weights whatever the settings are."""
    if isinstance(transformer, comfy.ldm.anima.model.Anima):
        sizes = {"source_dim": TEXT_WIDTH, "target_dim": TEXT_WIDTH, "model_dim": TEXT_WIDTH, "num_heads": 2}
        transformer.llm_adapter = comfy.ldm.anima.model.LLMAdapter(
            **sizes, num_layers=2, dtype=dtype, operations=comfy.ops.manual_cast
        ).requires_grad_(False)


def seed_all(transformer: nn.Module, seed: int) -> None:
    """Fills parameters and the buffers that come from a file: no gate and no last layer is left at zero."""
    seed_weights(transformer, seed)
    parameters = dict(transformer.named_parameters())
    for name, tensor in transformer.state_dict().items():
        if name not in parameters:
            tensor.copy_(seeded_tensor(name, tuple(tensor.shape), seed))


def nothing(noise: Generator, rows: int, tokens: int) -> dict[str, Any]:
    return {}


def pooled(noise: Generator, rows: int, tokens: int) -> dict[str, Any]:
    return {"pooled_output": torch.randn((rows, POOLED_WIDTH), generator=noise)}


def pooled_and_guided(noise: Generator, rows: int, tokens: int) -> dict[str, Any]:
    return {**pooled(noise, rows, tokens), "guidance": GUIDANCE}


def guided(noise: Generator, rows: int, tokens: int) -> dict[str, Any]:
    return {"guidance": GUIDANCE}


def tokens_of_t5(noise: Generator, rows: int, tokens: int) -> dict[str, Any]:
    """The second text of Anima, which the host's own encoder gives for one prompt; several stand without it."""
    if rows > 1:
        return {}
    ids = torch.randint(0, 32128, (tokens,), generator=noise)
    return {"t5xxl_ids": ids, "t5xxl_weights": torch.ones(tokens)}


def two_texts(noise: Generator, rows: int, tokens: int) -> dict[str, Any]:
    """HunyuanDiT's second text and both masks."""
    second = torch.randn((rows, configs.HUNYUAN_T5, configs.HUNYUAN_T5_WIDTH), generator=noise)
    masks = {"attention_mask": torch.ones(rows, tokens), "attention_mask_mt5xl": torch.ones(rows, configs.HUNYUAN_T5)}
    return {"conditioning_mt5xl": second, **masks}


KNOWN = comfy.supported_models
TRANSFORMERS: Mapping[str, TransformerFamily] = {
    family.name: family
    for family in (
        TransformerFamily("flux", KNOWN.Flux, configs.FLUX, pooled_and_guided),
        TransformerFamily("flux2", KNOWN.Flux2, configs.FLUX2, guided),
        TransformerFamily("chroma", KNOWN.Chroma, configs.CHROMA, nothing),
        TransformerFamily("qwen_image", KNOWN.QwenImage, configs.QWEN_IMAGE, nothing),
        TransformerFamily(
            "krea2",
            KNOWN.Krea2,
            configs.KREA2,
            nothing,
            text_width=configs.KREA2_TEXT_LAYERS * configs.KREA2_LAYER_WIDTH,
        ),
        TransformerFamily("z_image", KNOWN.ZImage, configs.Z_IMAGE, nothing),
        TransformerFamily("lumina2", KNOWN.Lumina2, configs.LUMINA2, nothing),
        TransformerFamily("anima", KNOWN.Anima, configs.ANIMA, tokens_of_t5),
        TransformerFamily("cosmos2", KNOWN.CosmosT2IPredict2, configs.COSMOS2, nothing),
        TransformerFamily("wan", KNOWN.WAN21_T2V, configs.WAN, nothing),
        TransformerFamily("sd35", KNOWN.SD3, configs.SD35, pooled),
    )
}
"""The families that attention can be edited in."""

HUNYUAN_DIT = TransformerFamily("hunyuan_dit", KNOWN.HunyuanDiT, configs.HUNYUAN_DIT, two_texts)
"""One whose attention cannot be reached, for refusals; its text has 77 tokens."""


def sample(
    model: ModelPatcher,
    positive: Conditioning,
    negative: Conditioning,
    latent: Latent,
    steps: int = 2,
    cfg: float = 3.0,
    sampler_name: str = "euler",
    scheduler: str = "simple",
    seed: int = 1,
    noise: Tensor | None = None,
    **more: Any,
) -> Tensor:
    """What the KSampler node samples, in inference mode as the host's executor has it; `noise` replaces the seed's."""
    with torch.inference_mode():
        start = comfy.sample.fix_empty_latent_channels(model, latent["samples"])
        chosen: Any = comfy.sample.prepare_noise(start, seed) if noise is None else noise
        given = (model, chosen, steps, cfg, sampler_name, scheduler, positive, negative, start)
        return comfy.sample.sample(*given, disable_pbar=True, seed=seed, **more)
