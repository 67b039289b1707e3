"""IP-Adapter files, recognised by the shapes of their tensors and never by their names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from ..families.names import FAMILY_OF_TEXT_WIDTH
from .encoders import ENCODER_OF_EMBEDDING, ENCODER_OF_PATCHES

Variant = Literal["base", "plus", "full"]


PUBLISHED = "huggingface.co/h94/IP-Adapter (folders models and sdxl_models)"
TRAINED = re.compile(
    r"(?:.*\.)?(?P<layer>(?:down|up|mid)_block.*\.attn2)\.processor\.(?P<part>to_[kv]_ip)(?:\.0)?\.weight"
)
"""Image keys and values of a cross-attention under the names of diffusers' UNet."""
EVEN = re.compile(r"ip_adapter\.\d*[02468]\.to_[kv]_ip\.weight")
LORA = ("lora", "lokr_", "hada_")
WRAPPERS = ("model.", "module.", "state_dict.")
"""What training programs put before the names of all tensors."""
OWN = ("image_proj", "ip_adapter", "adapter_modules")
"""Parts of names by which an adapter is known in a wrapper."""


class UnknownAdapter(ValueError):
    """The file is not an adapter that this pack can use. The message says what it is instead."""


@dataclass(frozen=True)
class AdapterLayout:
    """The architecture of an adapter, from the shapes of its tensors."""

    variant: Variant
    tokens: int
    clip_width: int
    text_width: int
    widths: Mapping[int, int]
    """Channels of the keys and values of each cross-attention, by its number in the file."""
    resampler_width: int = 0
    resampler_depth: int = 0
    resampler_heads: int = 0

    @property
    def is_global(self) -> bool:
        """Whether it reads one projected embedding of the picture, and not one state for each patch."""
        return self.variant == "base"

    @property
    def nothing_is_black(self) -> bool:
        """Whether the side without a picture sees a black one in place of the zero embedding."""
        return False

    @property
    def is_kolors(self) -> bool:
        """Whether it is for Kolors, whose UNet has the shapes of SDXL's, and whose pictures come from CLIP ViT-L."""
        return self.variant == "plus" and (self.text_width, self.clip_width) == (2048, 1024)

    @property
    def family(self) -> str:
        """The family of models it is for, such as `SDXL`, by the width of their text."""
        return FAMILY_OF_TEXT_WIDTH.get(self.text_width, f"{self.text_width}-wide")

    @property
    def encoder(self) -> str:
        """The image encoder it needs, in words."""
        known = ENCODER_OF_EMBEDDING if self.is_global else ENCODER_OF_PATCHES
        encoder = known.get(self.clip_width)
        what = "embeddings" if self.is_global else "patch states"
        return f"{encoder.name if encoder else 'an image encoder'} ({self.clip_width}-wide {what})"

    def __str__(self) -> str:
        name = {"base": "base (or light)", "plus": "plus (or plus-face, composition)", "full": "full-face"}[
            self.variant
        ]
        tokens = "one image token per patch" if self.variant == "full" else f"{self.tokens} image tokens"
        return f"{name} for {self.family}, {tokens}, {len(self.widths)} layers, needs {self.encoder}"


def flatten(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a `.bin` (nested dictionaries) or `.safetensors` (dotted names) file, with one set of names."""
    tensors: dict[str, Tensor] = {}
    for name, entry in checkpoint.items():
        if isinstance(entry, Mapping):
            tensors |= {f"{name}.{inner}": tensor for inner, tensor in flatten(entry).items()}  # pyright: ignore[reportUnknownArgumentType]
        elif isinstance(entry, Tensor):
            tensors[name] = entry
    tensors = _unwrapped(tensors)
    renamed = {"adapter_modules.": "ip_adapter.", "image_proj_model.": "image_proj."}
    for old, new in renamed.items():
        tensors = {new + name[len(old) :] if name.startswith(old) else name: t for name, t in tensors.items()}
    return tensors if _has_attention(tensors) else _numbered(tensors)


def _unwrapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """An adapter's tensors without the prefixes that all their names have."""
    for prefix in WRAPPERS:
        if all(name.startswith(prefix) for name in tensors) and any(own in name for name in tensors for own in OWN):
            return _unwrapped({name.removeprefix(prefix): tensor for name, tensor in tensors.items()})
    return tensors


def _numbered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with the names of published files, where the weights are those of a UNet's attention processors.

    So the authors' training script saves them, beside the whole UNet. Published files number the processors in the
    order of diffusers: down, up, mid, each block's self-attention before its cross-attention.
    """
    trained = {name: found for name in tensors if (found := TRAINED.fullmatch(name))}
    layers = sorted({found["layer"] for found in trained.values()}, key=_order)
    numbers = {layer: 2 * place + 1 for place, layer in enumerate(layers)}
    return {
        f"ip_adapter.{numbers[trained[name]['layer']]}.{trained[name]['part']}.weight" if name in trained else name: t
        for name, t in tensors.items()
    }


def _order(layer: str) -> tuple[int, list[int]]:
    part = ("down", "up", "mid").index(layer.partition("_")[0])
    return part, [int(number) for number in re.findall(r"\.(\d+)", layer)]


def numbers_every_block(tensors: Mapping[str, Tensor]) -> bool:
    """Whether it is for a transformer: files for UNets number cross-attentions with odd numbers alone."""
    return any(map(EVEN.fullmatch, tensors))


def _has_attention(tensors: Mapping[str, Tensor]) -> bool:
    return any(name.startswith("ip_adapter.") for name in tensors)


def recognise(tensors: Mapping[str, Tensor]) -> AdapterLayout:
    """The layout of an adapter, from its flattened tensors.

    Raises UnknownAdapter, naming what was found, for FaceID and Portrait adapters, for other kinds of files, and for
    adapters with missing tensors.
    """
    foreign = _foreign_kind(tensors)
    if foreign:
        raise UnknownAdapter(
            f"This file is {foreign}, not an IP-Adapter that Semblance can use. Choose a base, light, plus, plus-face, "
            "full-face, vit-G or composition IP-Adapter, e.g. ip-adapter_sdxl_vit-h.safetensors "
            "(huggingface.co/h94/IP-Adapter)."
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    try:
        return _layout(shapes)
    except KeyError as missing:
        raise UnknownAdapter(
            f"This IP-Adapter file is incomplete or of an unknown layout: {missing} is missing. "
            f"Download it again from {PUBLISHED}."
        ) from None
    # Tensors of fewer dimensions, layer names without a number.
    except (IndexError, ValueError, ZeroDivisionError) as fault:
        raise UnknownAdapter(
            f"This IP-Adapter file is incomplete or of an unknown layout ({fault}). Download it again from {PUBLISHED}."
        ) from None


def _layout(shapes: Mapping[str, tuple[int, ...]]) -> AdapterLayout:
    text_width, widths = _attention_widths(shapes)
    if "image_proj.proj.weight" in shapes:
        rows, clip_width = shapes["image_proj.proj.weight"]
        return AdapterLayout("base", rows // shapes["image_proj.norm.weight"][0], clip_width, text_width, widths)
    if "image_proj.proj.3.weight" in shapes:
        return AdapterLayout("full", 257, shapes["image_proj.proj.0.weight"][1], text_width, widths)
    _, tokens, width = shapes["image_proj.latents"]
    return AdapterLayout(
        "plus",
        tokens,
        shapes["image_proj.proj_in.weight"][1],
        text_width,
        widths,
        resampler_width=width,
        resampler_depth=len({name.split(".")[2] for name in shapes if name.startswith("image_proj.layers.")}),
        resampler_heads=shapes["image_proj.layers.0.0.to_q.weight"][0] // 64,
    )


def _attention_widths(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, dict[int, int]]:
    numbers = sorted({int(name.split(".")[1]) for name in shapes if name.startswith("ip_adapter.")})
    keys = {number: shapes[f"ip_adapter.{number}.to_k_ip.weight"] for number in numbers}
    values = {number: shapes[f"ip_adapter.{number}.to_v_ip.weight"] for number in numbers}
    if keys != values or numbers != list(range(1, 2 * len(numbers), 2)) or len({s[1] for s in keys.values()}) != 1:
        raise KeyError("a key or value of one of its attention layers")
    return keys[1][1], {number: shape[0] for number, shape in keys.items()}


def _foreign_kind(tensors: Mapping[str, Tensor]) -> str | None:
    """The kind of the file in words, or None for an IP-Adapter for CLIP image encoders."""
    names = tuple(tensors)
    projector = {name.removeprefix("image_proj.") for name in names if name.startswith("image_proj.")}
    attention = _has_attention(tensors)
    is_lora = any(mark in name for name in names for mark in LORA)
    if (attention and is_lora) or any("perceiver_resampler" in name for name in projector):
        return "a FaceID IP-Adapter, which needs face recognition"
    if numbers_every_block(tensors):
        return "an IP-Adapter for SD 3.5"
    if "norm.weight" in projector and "proj.0.weight" in projector:
        return "a FaceID or Portrait IP-Adapter, which needs face recognition"
    if any(name.startswith("ip_adapter_proj_model.") or "ip_adapter_double_stream_" in name for name in names):
        return "an IP-Adapter for Flux"
    if projector and attention:
        return None
    if projector or attention:
        return "half of an IP-Adapter (its projector or its attention weights are missing)"
    if is_lora:
        return "a LoRA"
    kinds = {
        "a whole checkpoint": ("model.diffusion_model.", "conditioner.", "cond_stage_model."),
        # Before the diffusion model, because a ControlNet has half of its names.
        "a ControlNet": ("control_model.", "controlnet_", "zero_convs.", "input_hint_block."),
        "a diffusion model": ("input_blocks.", "down_blocks.", "double_blocks.", "unet.", "diffusion_model."),
        "a CLIP image encoder": ("vision_model.", "visual."),
        "a text encoder": ("text_model.", "transformer."),
        "a VAE": ("encoder.", "decoder.", "first_stage_model."),
        "a textual-inversion embedding": ("string_to_param", "emb_params", "clip_l", "clip_g"),
    }
    for kind, prefixes in kinds.items():
        if any(name.startswith(prefixes) for name in names):
            return kind
    return f"of an unknown kind (its first tensor is '{names[0]}')" if names else "empty of tensors"
