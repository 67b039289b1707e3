"""The small models in demo/models as ComfyUI's objects, built from the configuration in their files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import comfy.clip_vision
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.supported_models
import comfy.supported_models_base
import comfy.utils
import torch
from PIL import Image
from torch import Tensor

from .files import DEMO_MODELS, UnreadableFile
from .known_words import whole_vocabulary
from .masked.files import PartFile
from .masked.loading import open_clip, open_model, open_vae
from .masked.preview import ColourOfTokens
from .masked.vae import TokenVAE
from .patchers import load_patcher
from .pictures import tensor_of
from .styledrop.objective import diffusion_loss

Topology = Literal["SDXL", "SD 1.5", "Flux", "aMUSEd"]
TOPOLOGIES: tuple[Topology, ...] = ("SDXL", "SD 1.5", "Flux", "aMUSEd")
PREDICTS_V = "v_pred"  # an empty tensor by which ComfyUI knows SDXL files that predict v
STYLE_PICTURE = "style_picture.png"
FLUX_SHIFT = 0.5
"""How sampling spaces its steps, Flux's own number: more of them on noisy latents, where colours are settled."""
FLUX_WORDS = 32
"""Tokens of a prompt that the Flux-like model is shown at a time. Its images attend to fillers as to words."""
STARTS = 1 / 4
"""The share of noise alone in a tuning. These models settle colours where sampling begins, and were trained so."""
_NETWORKS: Mapping[Topology, str] = {
    "SDXL": "unet_sdxl",
    "SD 1.5": "unet_sd15",
    "Flux": "transformer_flux",
    "aMUSEd": "transformer_amused",
}
_TOKENS = "vq"
"""aMUSEd's own VAE."""

_POSITIONS = "text_model.embeddings.position_embedding.weight"


@dataclass(frozen=True)
class DemoModel:
    """The outputs of Load Demo Model."""

    model: Any
    clip: Any
    vae: Any
    clip_vision: Any
    style_picture: Tensor
    """(1, 128, 128, 3) in 0..1: a drawing in a style that was held out in training."""


def load_demo(topology: Topology, dtype: torch.dtype | None = None) -> DemoModel:
    """The demo model of one topology and the encoders that all share, the network in `dtype` or as ComfyUI chooses.

    Raises UnreadableFile if a file of the pack is missing or damaged.
    """
    model, clip, vae = _load_network(topology, dtype), _load_clip(topology), _load_vae(topology)
    if isinstance(vae, TokenVAE):
        model.model.latent_format.colours = ColourOfTokens(vae)
    # By these ComfyUI loads them anew, for training, compiling and further devices.
    model.cached_patcher_init = (_load_network, (topology, dtype))
    clip.patcher.cached_patcher_init = (_load_clip_patcher, (topology,))
    vae.patcher.cached_patcher_init = (_load_vae_patcher, (topology,))
    return DemoModel(model, clip, vae, load_demo_encoder(), load_style_picture())


def _load_network(topology: Topology, dtype: torch.dtype | None, disable_dynamic: bool = False) -> Any:
    """The network, loaded like by ComfyUI's own loader, whose list of known models does not have these widths."""
    if topology == "aMUSEd":
        return open_model(_part(_NETWORKS[topology]), _part(_TOKENS), dtype, disable_dynamic)
    weights, config = _read(_NETWORKS[topology])
    weights.pop(PREDICTS_V, None)
    described = _flux_config(config) if topology == "Flux" else _unet_config(topology, config)
    patcher = load_patcher(described, weights, dtype, disable_dynamic)
    patcher.model.tuning_objective = partial(diffusion_loss, starts=STARTS)
    return patcher


def _unet_config(topology: Topology, config: Mapping[str, Any]) -> Any:
    known = {"SDXL": comfy.supported_models.SDXL, "SD 1.5": comfy.supported_models.SD15}[topology]
    own = {
        "unet_config": dict(config),
        "unet_extra_config": {name: config[name] for name in ("num_heads", "num_head_channels")},
        "model_type": lambda *_: comfy.model_base.ModelType.V_PREDICTION,
    }
    demo = type(f"Demo{known.__name__}", (known,), own)
    return demo({**config, "use_temporal_attention": False, "use_temporal_resblock": False})


def _flux_config(config: Mapping[str, Any]) -> Any:
    """Flux on the latents of the other models."""
    own = {
        "unet_config": dict(config),
        "latent_format": comfy.latent_formats.SDXL,
        "sampling_settings": {"shift": FLUX_SHIFT},
    }
    return type("DemoFlux", (comfy.supported_models.Flux,), own)(config)


def _load_clip(topology: Topology, disable_dynamic: bool = False) -> Any:
    """The CLIP. SDXL's two towers are the same encoder here, which the file holds once."""
    read, config = _read("text_encoder")
    weights = whole_vocabulary(read)
    if topology == "aMUSEd":
        return open_clip(PartFile("text_encoder", weights, config), disable_dynamic)
    if topology == "SDXL":
        towers, classes = ("clip_l", "clip_g"), (comfy.sdxl_clip.SDXLTokenizer, comfy.sdxl_clip.SDXLClipModel)
    else:
        towers, classes = ("clip_l",), (comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel)
    if topology == "Flux":
        config["max_position_embeddings"] = FLUX_WORDS
        weights[_POSITIONS] = weights[_POSITIONS][:FLUX_WORDS]
    return comfy.sd.CLIP(
        comfy.supported_models_base.ClipTarget(*classes),
        state_dict={f"{tower}.transformer.{key}": weight for tower in towers for key, weight in weights.items()},
        model_options={f"{tower}_model_config": dict(config) for tower in towers},
        tokenizer_data={"clip_l_max_length": FLUX_WORDS} if topology == "Flux" else {},
        disable_dynamic=disable_dynamic,
    )


def _load_clip_patcher(topology: Topology, disable_dynamic: bool = False) -> Any:
    return _load_clip(topology, disable_dynamic).patcher


def _load_vae(topology: Topology) -> Any:
    if topology == "aMUSEd":
        return open_vae(_part(_TOKENS))
    weights, _ = _read("autoencoder")
    return comfy.sd.VAE(sd=weights)


def _load_vae_patcher(topology: Topology, disable_dynamic: bool = False) -> Any:
    """As ComfyUI's own, which takes the request and leaves it to its VAE class."""
    return _load_vae(topology).patcher


def load_demo_encoder() -> Any:
    """The CLIP_VISION of all. `comfy.clip_vision.load` knows only encoders with the layers of large ones."""
    weights, config = _read("clip_vision")
    model = comfy.clip_vision.ClipVisionModel({"model_type": "clip_vision_model", **config})
    missing, unexpected = model.load_sd(weights)
    if missing or unexpected:
        raise _damaged("clip_vision.safetensors")
    return model


def load_style_picture() -> Tensor:
    """The drawing that comes with the models: a cactus on the left."""
    try:
        with Image.open(DEMO_MODELS / STYLE_PICTURE) as picture:
            return tensor_of(picture)
    except OSError as fault:
        raise _damaged(STYLE_PICTURE) from fault


def _part(name: str) -> PartFile:
    """A part of the masked transformer, as its own loader reads it."""
    return PartFile(name, *_read(name))


def _read(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The weights and the configuration of one file."""
    try:
        path = str(DEMO_MODELS / f"{name}.safetensors")
        weights, metadata = cast(tuple[Any, Any], comfy.utils.load_torch_file(path, return_metadata=True))
        return weights, json.loads(metadata["config"])
    except Exception as fault:  # a missing or broken file makes the reader raise almost anything
        raise _damaged(f"{name}.safetensors") from fault


def _damaged(file: str) -> UnreadableFile:
    return UnreadableFile(
        f"'{file}', which comes with Semblance, is not whole in {DEMO_MODELS}. Install the pack again."
    )
