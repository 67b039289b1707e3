"""The three files of a masked transformer: what they are, by names and shapes of their tensors, and if they fit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..files import TEXT_ENCODERS, UnreadableFile, load_tensors
from .settings import Shapes, TransformerSettings, VQSettings, transformer_settings, vq_settings
from .text import text_config

DIFFUSION_MODELS = "diffusion_models"
VAES = "vae"
Part = Literal["transformer", "VQ model", "text encoder"]
FOLDERS: Mapping[Part, str] = {"transformer": DIFFUSION_MODELS, "VQ model": VAES, "text encoder": TEXT_ENCODERS}
LICENCE = "openrail++"
WHERE = "huggingface.co/amused/amused-256 and amused-512"
PUBLISHED: Mapping[Part, str] = {
    "transformer": f"transformer/diffusion_pytorch_model.fp16.safetensors (1.2 GB) of {WHERE}, licence {LICENCE}",
    "VQ model": f"vqvae/diffusion_pytorch_model.fp16.safetensors (293 MB) of {WHERE}, licence {LICENCE}",
    "text encoder": f"text_encoder/model.fp16.safetensors (247 MB) of {WHERE}, licence {LICENCE}",
}
MARKS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("the transformer of aMUSEd", ("embed.embeddings.weight", "mlm_layer.conv2.weight", "encoder_proj.weight")),
    ("the VQ model of aMUSEd", ("quantize.embedding.weight", "encoder.down_blocks.0.resnets.0.conv1.weight")),
    ("a CLIP text encoder", ("text_model.encoder.layers.0.mlp.fc1.weight", "text_projection.weight")),
    ("a CLIP text encoder without its projection", ("text_model.encoder.layers.0.mlp.fc1.weight",)),
    ("a VAE without a codebook", ("decoder.conv_in.weight",)),
    ("a whole checkpoint", ("model.diffusion_model.input_blocks.0.0.weight",)),
    ("a UNet", ("input_blocks.0.0.weight",)),
    ("a UNet in diffusers' layout", ("conv_in.weight",)),
    ("an image encoder", ("vision_model.embeddings.class_embedding",)),
    ("a T5 text encoder", ("encoder.block.0.layer.0.SelfAttention.q.weight",)),
    ("a VAE without a codebook", ("taesd_decoder.1.weight",)),
)
"""What a file is, by tensors that it has; the first that fits."""
KINDS: Mapping[Part, str] = {
    "transformer": "the transformer of aMUSEd",
    "VQ model": "the VQ model of aMUSEd",
    "text encoder": "a CLIP text encoder",
}
WITHOUT_USE = {"text_model.embeddings.position_ids"}


@dataclass(frozen=True, eq=False)
class PartFile:
    """The weights of one part, with the configuration that its file may carry."""

    name: str
    weights: Mapping[str, Tensor]
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def shapes(self) -> Shapes:
        return {name: tuple(tensor.shape) for name, tensor in self.weights.items()}


def read_part(path: Path, part: Part) -> PartFile:
    """Opens one file. Raises UnreadableFile if it is damaged, or another thing than `part`."""
    weights = {name: tensor for name, tensor in load_tensors(path).items() if isinstance(tensor, Tensor)}
    weights = {name: tensor for name, tensor in weights.items() if name not in WITHOUT_USE}
    found = kind_of(weights)
    if found != KINDS[part]:
        raise UnreadableFile(
            f"'{path.name}' is {found}, where {KINDS[part]} is expected. Choose {PUBLISHED[part]}, in "
            f"models/{FOLDERS[part]}."
        )
    return PartFile(path.name, weights, _config(path))


def kind_of(weights: Mapping[str, Any]) -> str:
    """What a file is, in words."""
    known = (kind for kind, names in MARKS if all(name in weights for name in names))
    lora = any(".lora_" in name or name.startswith("lora_") for name in weights)
    return next(known, "a LoRA" if lora else "a file of another kind")


def transformer_of(file: PartFile) -> TransformerSettings:
    """The sizes in a transformer's file. Raises UnreadableFile if tensors are missing."""
    return _sizes(file, transformer_settings)


def vq_of(file: PartFile) -> VQSettings:
    """The sizes in a VQ model's file. Raises UnreadableFile if tensors are missing."""
    return _sizes(file, vq_settings)


def check_whole(file: PartFile, expected: Mapping[str, Tensor]) -> None:
    """Raises UnreadableFile if a file lacks a tensor of a network, or has one of another shape."""
    shapes = file.shapes
    for name, tensor in expected.items():
        if name not in shapes:
            raise UnreadableFile(f"'{file.name}' has no tensor '{name}', so it is not whole. Download it again.")
        if shapes[name] != tuple(tensor.shape):
            raise UnreadableFile(
                f"'{file.name}' has a tensor '{name}' of the shape {shapes[name]}, where its other tensors call for "
                f"{tuple(tensor.shape)}. It is damaged or of another model; download it again."
            )


def check_known(file: PartFile, expected: Mapping[str, Tensor]) -> None:
    """Raises UnreadableFile if a file has a tensor that a network lacks."""
    strange = next((name for name in file.weights if name not in expected), None)
    if strange is not None:
        raise UnreadableFile(
            f"'{file.name}' has a tensor '{strange}', which a network of its other tensors does not read. It is of "
            "another model; download it again."
        )


def check_fit(transformer: PartFile, vq: PartFile, text: PartFile) -> None:
    """Raises UnreadableFile for files that do not belong together."""
    sizes, codebook = transformer_of(transformer), vq_of(vq).codebook
    if sizes.codebook != codebook:
        raise UnreadableFile(
            f"'{transformer.name}' predicts {sizes.codebook} tokens, but the codebook of '{vq.name}' has {codebook}. "
            "Choose the transformer and the VQ model of one repository."
        )
    width = _sizes(text, text_config)["hidden_size"]
    pooled = text.shapes["text_projection.weight"][0]
    if (sizes.text, sizes.pooled) != (width, pooled):
        raise UnreadableFile(
            f"'{transformer.name}' reads text of {sizes.text} channels with a pooled text of {sizes.pooled}, but "
            f"'{text.name}' makes {width} and {pooled}. Choose the text encoder of the same repository."
        )


def _sizes(file: PartFile, read: Any) -> Any:
    try:
        return read(file.shapes, file.config)
    except (KeyError, ValueError, TypeError) as fault:
        raise UnreadableFile(f"'{file.name}' is not whole: {fault} is missing. Download it again.") from fault


def _config(path: Path) -> Mapping[str, Any]:
    """What a safetensors file carries under `config`; nothing in the published ones."""
    if path.suffix.lower() not in (".safetensors", ".sft"):
        return {}
    try:
        with safe_open(str(path), framework="pt") as file:
            found = json.loads((file.metadata() or {}).get("config", "{}"))
    except (SafetensorError, OSError, json.JSONDecodeError):
        return {}
    return found if isinstance(found, dict) else {}
