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

from .files import DEMO_MODELS, UnreadableFile
from .known_words import whole_vocabulary
from .patchers import load_patcher
from .styledrop.objective import diffusion_loss

Topology = Literal["SDXL", "SD 1.5"]
TOPOLOGIES: tuple[Topology, ...] = ("SDXL", "SD 1.5")
FLUX = "Flux"
DemoName = Literal[Topology, "Flux"]
DEMOS: tuple[DemoName, ...] = (*TOPOLOGIES, FLUX)
PREDICTS_V = "v_pred"  # an empty tensor by which ComfyUI knows SDXL files that predict v
STARTS = 1 / 4
"""The share of noise alone in a tuning. These models settle colours where sampling begins, and were trained so."""
_FILES: Mapping[DemoName, str] = {"SDXL": "unet_sdxl", "SD 1.5": "unet_sd15", FLUX: "transformer_flux"}
_END_TOKEN = 49407
_FLUX_TOKENS = 32
"""What a prompt is filled up to for the flow transformer, as in its training."""


class FluxLatents(comfy.latent_formats.SDXL):
    """Of the flow transformer: the four channels of the demo's autoencoder, at a variance of one."""

    scale_factor = 0.075


@dataclass(frozen=True)
class DemoModel:
    """The outputs of Load Demo Model."""

    model: Any
    clip: Any
    vae: Any
    clip_vision: Any


def load_demo(name: DemoName, dtype: torch.dtype | None = None) -> DemoModel:
    """One of the demo models and the encoders that all share, with the model in `dtype` or as ComfyUI chooses.

    Raises UnreadableFile if a file of the pack is missing or damaged.
    """
    model, clip, vae = _load_model(name, dtype), _load_clip(name), _load_vae()
    # By these ComfyUI loads them anew, for training, compiling and further devices.
    model.cached_patcher_init = (_load_model, (name, dtype))
    clip.patcher.cached_patcher_init = (_load_clip_patcher, (name,))
    vae.patcher.cached_patcher_init = (_load_vae_patcher, ())
    return DemoModel(model, clip, vae, load_demo_encoder())


def _load_model(name: DemoName, dtype: torch.dtype | None, disable_dynamic: bool = False) -> Any:
    """The model, loaded like by ComfyUI's own loader, whose list of known models does not have these widths."""
    weights, config = _read(_FILES[name])
    weights.pop(PREDICTS_V, None)
    description = _flux_config(config) if name == FLUX else _unet_config(name, config)
    patcher = load_patcher(description, description.process_unet_state_dict(weights), dtype, disable_dynamic)
    if name != FLUX:
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
    """Without guidance embedded, as FLUX.1 schnell: it samples with CFG."""
    own = {"unet_config": dict(config), "latent_format": FluxLatents}
    return type("DemoFlux", (comfy.supported_models.FluxSchnell,), own)(dict(config))


class FluxClipModel(comfy.sd1_clip.SD1ClipModel):
    """CLIP whose words are filled up no further than the flow transformer has seen: each stands in its attention.

    Its pooled text is projected, as SDXL's is and SD 1.5's is not.
    """

    def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: Mapping[str, Any] | None = None) -> None:
        projected: Any = comfy.sd1_clip.SDClipModel
        super().__init__(device, dtype, dict(model_options or {}), clip_model=projected)

    def encode_token_weights(self, token_weight_pairs: Mapping[str, Any]) -> tuple[Any, ...]:
        context, *rest = super().encode_token_weights(token_weight_pairs)
        first, *more = token_weight_pairs[self.clip_name]
        words = [token for token, *_ in first].index(_END_TOKEN) + 1
        return (context if more else context[:, : max(words, _FLUX_TOKENS)], *rest)


def _load_clip(name: DemoName, disable_dynamic: bool = False) -> Any:
    """The CLIP. SDXL's two towers are the same encoder here, which the file holds once."""
    read, config = _read("text_encoder")
    weights = whole_vocabulary(read)
    if name == "SDXL":
        towers, classes = ("clip_l", "clip_g"), (comfy.sdxl_clip.SDXLTokenizer, comfy.sdxl_clip.SDXLClipModel)
    else:
        tower = FluxClipModel if name == FLUX else comfy.sd1_clip.SD1ClipModel
        towers, classes = ("clip_l",), (comfy.sd1_clip.SD1Tokenizer, tower)
    return comfy.sd.CLIP(
        comfy.supported_models_base.ClipTarget(*classes),
        state_dict={f"{tower}.transformer.{key}": weight for tower in towers for key, weight in weights.items()},
        model_options={f"{tower}_model_config": dict(config) for tower in towers},
        disable_dynamic=disable_dynamic,
    )


def _load_clip_patcher(name: DemoName, disable_dynamic: bool = False) -> Any:
    return _load_clip(name, disable_dynamic).patcher


def _load_vae() -> Any:
    weights, _ = _read("autoencoder")
    return comfy.sd.VAE(sd=weights)


def _load_vae_patcher(disable_dynamic: bool = False) -> Any:
    """As ComfyUI's own, which takes the request and leaves it to its VAE class."""
    return _load_vae().patcher


def load_demo_encoder() -> Any:
    """The CLIP_VISION of all. `comfy.clip_vision.load` knows only encoders with the layers of large ones."""
    weights, config = _read("clip_vision")
    model = comfy.clip_vision.ClipVisionModel({"model_type": "clip_vision_model", **config})
    missing, unexpected = model.load_sd(weights)
    if missing or unexpected:
        raise _damaged("clip_vision")
    return model


def _read(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The weights and the configuration of one file."""
    try:
        path = str(DEMO_MODELS / f"{name}.safetensors")
        weights, metadata = cast(tuple[Any, Any], comfy.utils.load_torch_file(path, return_metadata=True))
        return weights, json.loads(metadata["config"])
    except Exception as fault:  # a missing or broken file makes the reader raise almost anything
        raise _damaged(name) from fault


def _damaged(name: str) -> UnreadableFile:
    return UnreadableFile(
        f"'{name}.safetensors', which comes with Semblance, is not whole in {DEMO_MODELS}. Install the pack again."
    )
