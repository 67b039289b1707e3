"""What a masked transformer cannot be sampled with, said before a picture is lost to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from .sampling import MaskedSampling

NEAR = 1e-5
"""How near to a share of the schedule a noise level is taken for it."""
MASKED = 0.5
"""From which value on a noise mask masks a token."""
FOREIGN_CONDS = {"control": "ControlNet", "gligen": "GLIGEN"}


def check_model(model: Any) -> None:
    """Raises ValueError for a model of another kind."""
    if not isinstance(model.model_sampling, MaskedSampling):
        raise ValueError(
            f"Masked Sampler finds the tokens of a masked transformer, and this model is {type(model).__name__}. Load "
            "the model with Load Masked Transformer, or use another sampler."
        )


def check_sigmas(levels: Sequence[float]) -> None:
    """Raises ValueError for noise levels that are no shares of masked tokens."""
    falling = all(before >= after for before, after in zip(levels, levels[1:], strict=False))
    if not falling or levels[0] > 1 + NEAR or levels[-1] < 0:
        raise ValueError(
            f"Masked Sampler was given sigmas from {levels[0]:.4g} to {levels[-1]:.4g}, but its own are shares of "
            "masked tokens that fall from 1 to 0. Connect its output sigmas to the input sigmas of the sampler node."
        )


def check_tokens(latent: Tensor) -> None:
    """Raises ValueError for a latent (rows, codebook, height, width) that is not one-hot tokens."""
    if not bool(((latent == 0) | (latent == 1)).all() and (latent.sum(dim=1) <= 1).all()):
        raise ValueError(
            "This latent is not made of tokens. Make it with VAE Encode and the VAE of Load Masked Transformer, or use "
            "an Empty Latent Image; and do not blend, add or scale latents of tokens."
        )


def check_logits(logits: Tensor) -> None:
    """Raises ValueError for logits (rows, tokens, codebook) of which no token can be drawn."""
    # The largest is NaN where any is; a token ruled out by minus infinity is no fault.
    if not bool(logits.amax(dim=-1).isfinite().all()):
        raise ValueError(
            "The masked transformer predicted values that are no numbers (NaN or infinite), of which no token can be "
            "drawn. Set weight_dtype of Load Masked Transformer to default, lower the CFG, and bypass the patches and "
            "LoRAs on the model one by one."
        )


def check_noise_mask(options: Mapping[str, Any], masked: Tensor) -> None:
    """Raises ValueError for a noise mask that does nothing, or that another node would have act step by step."""
    if "denoise_mask_function" in options:
        raise ValueError(
            "Differential Diffusion changes the noise mask from step to step, and a token is masked or it is not. "
            "Bypass Differential Diffusion; the noise mask acts without it."
        )
    if not bool(masked.any()):
        raise ValueError(
            f"The noise mask masks no token. A token is made anew where the mask is {MASKED} or more in the token's "
            "middle, and thin lines fall between. Draw or grow the mask to the width of a token (16 pixels), or take "
            "Set Latent Noise Mask away."
        )


def check_conds(conds: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Raises ValueError for conditionings that carry what acts on a UNet alone."""
    names = (name for side in conds.values() for cond in side for name in FOREIGN_CONDS if name in cond)
    found = next(names, None)
    if found is not None:
        raise ValueError(
            f"{FOREIGN_CONDS[found]} acts on the UNet of Stable Diffusion, and a masked transformer (aMUSEd) has none. "
            "Connect the prompts without it."
        )


def check_sampling(sampling: Any) -> None:
    """Raises ValueError for a masked transformer with the noise of another kind."""
    if not isinstance(sampling, MaskedSampling):
        raise ValueError(
            f"Another node gave this masked transformer the sampling of other models ({type(sampling).__name__}). "
            "Bypass the ModelSampling node."
        )
