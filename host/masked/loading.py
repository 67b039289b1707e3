"""A masked transformer from its three files, as MODEL, CLIP and VAE."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP

from ..patchers import load_patcher
from .files import PartFile, check_fit, check_known, check_whole, read_part, transformer_of, vq_of
from .model import MaskedConfig
from .preview import ColourOfTokens
from .sampler import GUARD, only_masked_sampler
from .text import load_clip, text_network
from .transformer import MaskedTransformer
from .vae import TokenVAE
from .vq import VQModel


@dataclass(frozen=True)
class MaskedFiles:
    """Where the three files are, and in which type the transformer's weights are kept (None: as ComfyUI chooses)."""

    transformer: Path
    vq: Path
    text: Path
    dtype: torch.dtype | None = None


@dataclass(frozen=True, eq=False)
class MaskedParts:
    """The outputs of Load Masked Transformer."""

    model: Any
    clip: Any
    vae: Any


def load_masked(files: MaskedFiles) -> MaskedParts:
    """Opens the three files. Raises UnreadableFile for a wrong, damaged or foreign one."""
    transformer = read_part(files.transformer, "transformer")
    vq = read_part(files.vq, "VQ model")
    text = read_part(files.text, "text encoder")
    check_fit(transformer, vq, text)
    vae = open_vae(vq)
    model = open_model(transformer, vq, files.dtype)
    model.model.latent_format.colours = ColourOfTokens(vae)
    clip = open_clip(text)
    # By these ComfyUI loads them anew, for training, compiling and further devices.
    model.cached_patcher_init = (_load_model, (files,))
    clip.patcher.cached_patcher_init = (_load_clip_patcher, (files,))
    vae.patcher.cached_patcher_init = (_load_vae_patcher, (files,))
    return MaskedParts(model, clip, vae)


def _load_model(files: MaskedFiles, disable_dynamic: bool = False) -> Any:
    transformer, vq = read_part(files.transformer, "transformer"), read_part(files.vq, "VQ model")
    return open_model(transformer, vq, files.dtype, disable_dynamic)


def open_model(file: PartFile, vq: PartFile, dtype: torch.dtype | None, disable_dynamic: bool = False) -> Any:
    """The transformer, loaded as ComfyUI's own loader does, which does not know its kind."""
    settings, pixels = transformer_of(file), vq_of(vq).pixels
    with torch.device("meta"):
        check_whole(file, MaskedTransformer(settings).state_dict())
    patcher = load_patcher(MaskedConfig(settings, pixels), dict(file.weights), dtype, disable_dynamic)
    patcher.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, GUARD, only_masked_sampler)
    return patcher


def open_vae(file: PartFile) -> TokenVAE:
    """The VQ model as ComfyUI's VAE. Raises UnreadableFile if it is not whole."""
    settings = vq_of(file)
    with torch.device("meta"):
        expected = VQModel(settings).state_dict()
    check_whole(file, expected)
    check_known(file, expected)
    return TokenVAE(file.weights, settings)


def open_clip(file: PartFile, disable_dynamic: bool = False) -> Any:
    """The text encoder as ComfyUI's CLIP. Raises UnreadableFile if it is not whole."""
    with torch.device("meta"):
        check_whole(file, text_network(file.shapes, file.config).state_dict())
    return load_clip(file.weights, file.config, disable_dynamic)


def _load_vae_patcher(files: MaskedFiles, disable_dynamic: bool = False) -> Any:
    """As ComfyUI's own, which takes the request and leaves it to its VAE class."""
    return open_vae(read_part(files.vq, "VQ model")).patcher


def _load_clip_patcher(files: MaskedFiles, disable_dynamic: bool = False) -> Any:
    text = read_part(files.text, "text encoder")
    return open_clip(text, disable_dynamic).patcher
