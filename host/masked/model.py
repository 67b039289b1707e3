"""The masked transformer as ComfyUI's model: what it is asked with, what it predicts, how much memory it takes."""

from __future__ import annotations

import logging
from typing import Any

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.supported_models_base
import torch
from comfy.model_base import ModelType
from torch import Tensor

from .preview import ColourOfTokens
from .sampling import MaskedSampling
from .settings import TransformerSettings
from .transformer import MaskedTransformer
from .tuning import MaskedTuning

AESTHETIC = 6
"""The aesthetic score that aMUSEd's own code asks for."""
COPIES_OF_LOGITS = 6
"""One-hot tokens, logits and their softmax, of which several are there at once."""
COPIES_OF_TOKENS = 24


class TokenLatent(comfy.latent_formats.LatentFormat):
    """A latent of one-hot tokens: a channel for each entry of the codebook, all zero where a token is masked."""

    def __init__(self, codebook: int = 0, pixels: int = 16) -> None:
        self.latent_channels = codebook
        self.spacial_downscale_ratio = pixels
        self.colours: ColourOfTokens | None = None

    @property
    def latent_rgb_factors(self) -> list[list[float]] | None:
        """For ComfyUI's previews."""
        return None if self.colours is None else self.colours.factors


class MaskedConfig(comfy.supported_models_base.BASE):
    """ComfyUI's description of a masked transformer."""

    unet_extra_config: dict[str, Any] = {}
    latent_format = TokenLatent

    def __init__(self, settings: TransformerSettings, pixels: int) -> None:
        super().__init__({"settings": settings})
        self.latent_format = TokenLatent(settings.codebook, pixels)

    def get_model(self, state_dict: dict[str, Tensor], prefix: str = "", device: Any = None) -> MaskedModel:
        return MaskedModel(self, device)


class MaskedModel(comfy.model_base.BaseModel):
    """Logits (rows, codebook, height, width) from one-hot tokens of that shape."""

    def __init__(self, model_config: MaskedConfig, device: Any = None) -> None:
        network: Any = MaskedTransformer  # ComfyUI declares its UNet's class, and only calls what it is given
        super().__init__(model_config, ModelType.FLOW, device=device, unet_model=network)
        self.settings: TransformerSettings = model_config.unet_config["settings"]
        self.model_sampling = MaskedSampling()
        self.tuning_objective = MaskedTuning()

    def encode_adm(self, **named: Any) -> Tensor:
        """The pooled text. Raises ValueError for a conditioning of another CLIP."""
        pooled, text = named.get("pooled_output"), named.get("cross_attn")
        if pooled is None or text is None or (text.shape[-1], pooled.shape[-1]) != self._text_widths():
            found = "none" if text is None or pooled is None else f"{text.shape[-1]} and {pooled.shape[-1]}"
            raise ValueError(
                f"The masked transformer reads text of {self._text_widths()[0]} channels with a pooled text of "
                f"{self._text_widths()[1]}; this conditioning has {found}. Encode the prompts with the CLIP of Load "
                "Masked Transformer."
            )
        return pooled

    def extra_conds(self, **named: Any) -> dict[str, Any]:
        height, width = named["noise"].shape[-2:]
        pixels = self.latent_format.spacial_downscale_ratio
        # Width before height: so the authors' code has it.
        numbers = [width * pixels, height * pixels, 0, 0, round(named.get("aesthetic_score", AESTHETIC))]
        micro = torch.tensor([numbers], device=named["device"])
        return {**super().extra_conds(**named), "micro": comfy.conds.CONDRegular(micro)}

    def memory_required(self, input_shape: Any, cond_shapes: Any = None) -> float:
        rows, codebook, height, width = input_shape
        size = comfy.model_management.dtype_size(self.get_dtype_inference())
        s = self.settings
        inside = max(s.hidden, s.channels * 4, 2 * s.feed_forward) * size * COPIES_OF_TOKENS
        return float(rows * height * width * (codebook * 4 * COPIES_OF_LOGITS + inside))

    def load_model_weights(self, sd: dict[str, Tensor], unet_prefix: str = "", assign: bool = False) -> MaskedModel:
        missing, unexpected = self.diffusion_model.load_state_dict(sd, strict=False, assign=assign)
        if missing or unexpected:
            logging.warning("masked transformer: missing %s, unexpected %s", missing, unexpected)
        return self

    def _text_widths(self) -> tuple[int, int]:
        return self.settings.text, self.settings.pooled
