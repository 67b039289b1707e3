"""aMUSEd's text encoder: CLIP, read at the layer before the last without the final norm, and the pooled text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.clip_model
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
from torch import Tensor, nn

from .settings import HEAD, Shapes, count

LAYER = -2


class PenultimateCLIP(comfy.sd1_clip.SDClipModel):
    def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: Any = None) -> None:
        super().__init__(
            device=device,
            dtype=dtype,
            layer_norm_hidden_state=False,
            return_projected_pooled=True,
            model_options=model_options or {},
        )
        # Not by the constructor, which refuses an encoder of two layers.
        self.set_clip_options({"layer": LAYER})
        self.options_default = (self.layer, self.layer_idx, self.return_projected_pooled)


class AmusedCLIP(comfy.sd1_clip.SD1ClipModel):
    def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: Any = None) -> None:
        encoder: Any = PenultimateCLIP
        super().__init__(device=device, dtype=dtype, model_options=model_options or {}, clip_model=encoder)


def load_clip(weights: Mapping[str, Tensor], config: Mapping[str, Any], disable_dynamic: bool = False) -> Any:
    """The CLIP of these weights, which are named as transformers names them."""
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    return comfy.sd.CLIP(
        comfy.supported_models_base.ClipTarget(comfy.sd1_clip.SD1Tokenizer, AmusedCLIP),
        state_dict={f"clip_l.transformer.{name}": tensor for name, tensor in weights.items()},
        model_options={"clip_l_model_config": text_config(shapes, config)},
        disable_dynamic=disable_dynamic,
    )


def text_network(shapes: Shapes, config: Mapping[str, Any]) -> nn.Module:
    """The network of a text encoder with these shapes, for the names of its tensors."""
    # PyTorch's own layers: ComfyUI's may leave out weights until these are loaded.
    return comfy.clip_model.CLIPTextModel(text_config(shapes, config), None, None, nn)


def text_config(shapes: Shapes, config: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes of a text encoder, read off its tensors; what they do not tell is CLIP-L's unless `config` does."""
    width = shapes["text_model.final_layer_norm.weight"][0]
    return {
        "num_attention_heads": max(width // HEAD, 1),
        "hidden_act": "quick_gelu",
        "eos_token_id": 49407,
        **config,
        "hidden_size": width,
        "num_hidden_layers": count(shapes, "text_model.encoder.layers"),
        "intermediate_size": shapes["text_model.encoder.layers.0.mlp.fc1.weight"][0],
        "max_position_embeddings": shapes["text_model.embeddings.position_embedding.weight"][0],
    }
