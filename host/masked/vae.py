"""The VQ model as ComfyUI's VAE: VAE Encode makes one-hot tokens, VAE Decode pictures of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import torch
from torch import Tensor

from ...attention.functional.masked_tokens import one_hot
from .checks import check_tokens
from .settings import VQSettings
from .vq import VQModel

BYTES_A_PIXEL = 2200
"""While a picture is encoded or decoded, by ComfyUI's estimate for a KL model of the same blocks."""


class TokenVAE(comfy.sd.VAE):
    """ComfyUI's VAE around a VQ model. Its latent is one-hot tokens, all zero where a token is masked."""

    def __init__(self, weights: Mapping[str, Tensor], settings: VQSettings) -> None:
        with _without_warnings():  # ComfyUI sets what every VAE has, and warns that it knows no weights of these names
            super().__init__(sd={})
        self.first_stage_model = VQModel(settings).eval().requires_grad_(False)
        self.latent_channels = settings.codebook
        self.downscale_ratio = self.upscale_ratio = settings.pixels
        self.output_channels = settings.colours
        self.working_dtypes = [torch.float32]  # in half precision other tokens are nearest, hence `force_upcast`
        self.process_input = lambda image: image
        self.process_output = lambda image: image.clamp_(0.0, 1.0)
        self.memory_used_encode = lambda shape, dtype: self._memory(shape[2] * shape[3], dtype)
        self.memory_used_decode = lambda shape, dtype: self._memory(shape[2] * shape[3] * settings.pixels**2, dtype)
        self._place(weights)

    def encode_tiled_(self, pixel_samples: Tensor, *arguments: Any, **named: Any) -> Tensor:
        """As ComfyUI's, which averages tiles: of each place the token that most tiles have."""
        averaged = super().encode_tiled_(pixel_samples, *arguments, **named)
        return one_hot(averaged.argmax(dim=1), averaged.shape[1], averaged.dtype)

    def decode(self, samples_in: Tensor, *arguments: Any, **named: Any) -> Tensor:
        """As ComfyUI's. Raises ValueError for latents that are no tokens."""
        check_tokens(samples_in)
        return super().decode(samples_in, *arguments, **named)

    def decode_tiled(self, samples: Tensor, *arguments: Any, **named: Any) -> Tensor:
        """As ComfyUI's. Raises ValueError for latents that are no tokens."""
        check_tokens(samples)
        return super().decode_tiled(samples, *arguments, **named)

    def _memory(self, pixels: int, dtype: torch.dtype) -> int:
        return BYTES_A_PIXEL * pixels * comfy.model_management.dtype_size(dtype)

    def _place(self, weights: Mapping[str, Tensor]) -> None:
        """Hands the model to ComfyUI's memory management, as the constructor of its VAE does."""
        management = comfy.model_management
        self.device, self.output_device = management.vae_device(), management.intermediate_device()
        self.vae_dtype = management.vae_dtype(self.device, self.working_dtypes)
        self.first_stage_model.to(self.vae_dtype)
        management.archive_model_dtypes(self.first_stage_model)
        self.patcher = comfy.model_patcher.CoreModelPatcher(
            self.first_stage_model, load_device=self.device, offload_device=management.vae_offload_device()
        )
        self.first_stage_model.load_state_dict(dict(weights), assign=self.patcher.is_dynamic())
        self.model_size()


@contextmanager
def _without_warnings() -> Iterator[None]:
    def silent(record: logging.LogRecord) -> bool:
        return record.levelno > logging.WARNING

    root = logging.getLogger()
    root.addFilter(silent)
    try:
        yield
    finally:
        root.removeFilter(silent)
