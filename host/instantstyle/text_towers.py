"""The text half of a CLIP: texts as embeddings in the space of an image encoder, projected and not normalised."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.sd1_clip
import torch
from safetensors import safe_open
from torch import Tensor, nn

from ...attention.adapters.encoders import ENCODER_OF_EMBEDDING
from ..files import CLIP_VISION, TEXT_ENCODERS, UnreadableFile, find_file, load_tensors

if TYPE_CHECKING:
    from transformers import CLIPTextConfig
REMEDIES = {
    64: "Connect the clip of Load Demo Model",
    768: "Load CLIP Text Tower with a full CLIP ViT-L file, model.safetensors of "
    "huggingface.co/openai/clip-vit-large-patch14",
    1024: "Connect an SD 2.x text encoder (OpenCLIP-H), or Load CLIP Text Tower with a full CLIP-ViT-H-14 file",
    1152: "Semblance reads no text half of SigLIP; subtract words with an adapter that reads CLIP",
    1280: "Connect the CLIP of an SDXL checkpoint",
}
TOWER_PUBLISHED = "huggingface.co/laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
END_MARK = 49407  # the end token in the vocabulary of all CLIP towers
LONGEST = 77
"""Tokens of one text block, including both marks. Pooled embeddings ignore later blocks."""


@dataclass(frozen=True, eq=False)
class TextTower:
    """The text half of a CLIP file in transformers' layout."""

    name: str
    model: nn.Module
    width: int


@dataclass(frozen=True, eq=False)
class EmbeddedText:
    """A text as a tower sees it."""

    embedding: Tensor  # (1, width), float32 on the CPU
    whole: bool
    """Whether all of the text fitted into the one block of tokens that is read."""


def embed_text(encoder: Any, text: str, width: int, seen: str = "The reference was") -> EmbeddedText:
    """`text` in the space of an image encoder whose embeddings are `width` wide. `encoder` is a CLIP or a TextTower.

    Of a text longer than one block only the first block counts, and weights such as (word:1.2) do not count: so it is
    with every pooled embedding of CLIP. Raises ValueError if the encoder's embeddings are not `width` wide or its file
    is incomplete; the message says by `seen` what the image encoder saw.
    """
    embed = _embed_with_tower if isinstance(encoder, TextTower) else _embed_with_clip
    return embed(encoder, text, width, seen)


def load_text_tower(name: str) -> TextTower:
    """Opens the text half of a CLIP file in transformers' layout, e.g. a full CLIP-ViT-H-14 model.safetensors.

    Raises UnreadableFile if it is missing, damaged, or has no text half with a projection.
    """
    from transformers import CLIPTextModelWithProjection  # slow to import, and few need it

    path = find_file(name, CLIP_VISION, TEXT_ENCODERS, published=TOWER_PUBLISHED)
    tensors = {key: tensor for key, tensor in _text_half(path).items() if not key.endswith("position_ids")}
    if "text_projection.weight" not in tensors or "text_model.embeddings.token_embedding.weight" not in tensors:
        raise UnreadableFile(
            f"'{name}' has no CLIP text tower with a projection (it needs text_model.* and text_projection.weight). "
            f"Use a full CLIP file in transformers' layout, e.g. model.safetensors of {TOWER_PUBLISHED}."
        )
    try:
        model = CLIPTextModelWithProjection(_config_of(tensors))
        model.load_state_dict({key: tensor.float() for key, tensor in tensors.items()}, strict=True)
    except (KeyError, RuntimeError) as missing:
        raise UnreadableFile(
            f"'{name}' is incomplete or of an unknown layout ({str(missing).splitlines()[-1].strip()[:160]}). "
            "Download the file again."
        ) from missing
    width = tensors["text_projection.weight"].shape[0]
    return TextTower(name, model.eval().requires_grad_(False), width)


def _embed_with_tower(tower: TextTower, text: str, width: int, seen: str) -> EmbeddedText:
    _check_space(tower.width, width, f"the text tower '{tower.name}'", seen)
    blocks = comfy.sd1_clip.SD1Tokenizer().tokenize_with_weights(text)["l"]
    ids = [token for token, _ in blocks[0]]
    # The embedding is taken at the first end mark of a causal tower, so the padding after it has no effect.
    ids = ids[: ids.index(END_MARK) + 1]
    return EmbeddedText(tower.model(input_ids=torch.tensor([ids])).text_embeds.float(), len(blocks) == 1)


def _embed_with_clip(clip: Any, text: str, width: int, seen: str) -> EmbeddedText:
    name, tower = _pooled_tower(clip)
    connected = f"the text encoder connected ({name})"
    _check_space(tower.transformer.text_projection.out_features, width, connected, seen)
    _check_whole(clip, tower.transformer, name)
    tokens = clip.tokenize(text)
    blocks = tokens[name.removeprefix("clip_")]
    clip.cond_stage_model.reset_clip_options()
    tower.set_clip_options({"projected_pooled": True})
    clip.load_model(tokens)
    tower.set_clip_options({"execution_device": clip.patcher.load_device})
    try:
        # Of the tower itself: the CLIP of SD 3 returns the concatenated pooled outputs of two towers.
        embedding = tower.encode_token_weights(blocks[:1])[1].float().cpu()
    finally:
        clip.cond_stage_model.reset_clip_options()
    return EmbeddedText(embedding, len(blocks) == 1)


def _pooled_tower(clip: Any) -> tuple[str, Any]:
    """The tower that gives a CLIP's pooled output: bigG of SDXL, H of SD 2.x, L of SD 1.5."""
    for name in ("clip_g", "clip_h", "clip_l"):
        tower = getattr(clip.cond_stage_model, name, None)
        if tower is not None and hasattr(getattr(tower, "transformer", None), "text_projection"):
            return name, tower
    raise ValueError(
        f"The text encoder connected ({type(clip.cond_stage_model).__name__}) is not a CLIP, so its words cannot be "
        "compared with a picture. Connect the CLIP of an SDXL checkpoint, or an SD 2.x text encoder."
    )


def _check_space(found: int, width: int, what: str, seen: str) -> None:
    if found == width:
        return
    remedy = REMEDIES.get(width, "Connect the text encoder that was trained with the image encoder")
    raise ValueError(
        f"{seen} seen by {_tower(width, 'an image encoder')} ({width}-wide), but {what} is "
        f"{_tower(found, 'another')} ({found}-wide): their words and pictures cannot be compared. {remedy}."
    )


def _tower(width: int, otherwise: str) -> str:
    """The CLIP model whose projected embeddings are `width` wide."""
    return ENCODER_OF_EMBEDDING[width].name if width in ENCODER_OF_EMBEDDING else otherwise


def _check_whole(clip: Any, tower: Any, name: str) -> None:
    """Refuses an encoder whose file lacks tensors: ComfyUI leaves them as uninitialised memory without an error."""
    parts = {
        "projection (text_projection)": (r"text_projection(\.weight)?$", tower.text_projection.weight),
        "last layer": (
            rf"(layers|resblocks)\.{tower.num_layers - 1}\.mlp\.(fc2|c_proj)\.weight$",
            tower.text_model.encoder.layers[-1].mlp.fc2.weight,
        ),
    }
    files = _files_of(clip)
    legible = bool(files) and all(path.endswith((".safetensors", ".sft")) for path in files)
    for part, (pattern, weight) in parts.items():
        if not (any(_contains(path, pattern, weight) for path in files) if legible else _is_trained(weight)):
            raise ValueError(
                f"The text encoder's file has no {part} for {name}, so its words cannot be compared with a picture. "
                "Use a file that has one, e.g. a whole SDXL or SD 2.x checkpoint rather than its diffusers text "
                "encoder."
            )


def _files_of(clip: Any) -> Sequence[str]:
    """The files from which ComfyUI's loaders made this CLIP, as far as it records them."""
    made_by = getattr(clip.patcher, "cached_patcher_init", None)
    source = made_by[1][0] if made_by and made_by[1] else ()
    return [source] if isinstance(source, str) else [path for path in source if isinstance(path, str)]


def _contains(path: str, pattern: str, weight: Tensor) -> bool:
    """Whether a safetensors file has a tensor of this name and shape."""
    with safe_open(path, framework="pt") as file:
        names = [name for name in file.keys() if re.search(pattern, name)]  # noqa: SIM118
        return any(tuple(file.get_slice(name).get_shape()) == tuple(weight.shape) for name in names)


def _is_trained(weight: Tensor) -> bool:
    """Whether this can be a trained matrix. Uninitialised memory holds zeros, huge numbers or NaN."""
    return 1e-4 < float(weight.detach().float().std()) < 10.0


def _text_half(path: Path) -> dict[str, Tensor]:
    prefixes = ("text_model.", "text_projection.")
    if path.suffix != ".safetensors":
        return {key: tensor for key, tensor in load_tensors(path).items() if key.startswith(prefixes)}
    try:
        with safe_open(str(path), framework="pt") as file:  # a full file is 4 GB; the image half stays on disk
            return {key: file.get_tensor(key) for key in file.keys() if key.startswith(prefixes)}  # noqa: SIM118
    except Exception as fault:
        raise UnreadableFile(
            f"'{path.name}' cannot be read: the file is damaged ({fault}). Download it again."
        ) from fault


def _config_of(tensors: dict[str, Tensor]) -> CLIPTextConfig:
    from transformers import CLIPTextConfig

    vocabulary, width = tensors["text_model.embeddings.token_embedding.weight"].shape
    layers = {key.split(".")[3] for key in tensors if key.startswith("text_model.encoder.layers.")}
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=tensors["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
        projection_dim=tensors["text_projection.weight"].shape[0],
        num_hidden_layers=len(layers),
        num_attention_heads=max(width // 64, 1),
        # OpenAI's ViT-L uses the sigmoid approximation; OpenCLIP's towers the exact function.
        hidden_act="quick_gelu" if width == 768 else "gelu",
        bos_token_id=49406,
        eos_token_id=END_MARK,
    )
