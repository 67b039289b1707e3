"""IP-Adapter files for Flux, recognised by the names and shapes of their tensors and never by the file's name.

Two forms are published. InstantX's (huggingface.co/InstantX/FLUX.1-dev-IP-Adapter) has weights for every block, those
of the double blocks first; XLabs' (huggingface.co/XLabs-AI/flux-ip-adapter) for the double blocks alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from .checkpoint import OWN, AdapterLayout, UnknownAdapter, numbers_every_block
from .encoders import ENCODER_OF_EMBEDDING

FluxForm = Literal["InstantX", "XLabs"]
FLUX = "Flux"
XLABS = re.compile(
    r"double_blocks\.(?P<number>\d+)\.processor\.ip_adapter_double_stream_(?P<part>[kv])_proj\.(?P<leaf>\w+)"
)
XLABS_PROJECTOR = "ip_adapter_proj_model."
PUBLISHED_BLOCKS: Mapping[FluxForm, int] = {"InstantX": 57, "XLabs": 19}
"""How many blocks the published files have weights for."""
LAYER = re.compile(r"ip_adapter\.(?P<number>\d+)\.to_[kv]_ip\.(?:weight|bias)")
PUBLISHED = "huggingface.co/InstantX/FLUX.1-dev-IP-Adapter or huggingface.co/XLabs-AI/flux-ip-adapter"


@dataclass(frozen=True)
class FluxAdapterLayout:
    """The architecture of an adapter for Flux, from the shapes of its tensors."""

    form: FluxForm
    tokens: int
    clip_width: int
    text_width: int
    """Channels of an image token, as many as the model's text has."""
    widths: Mapping[int, int]
    """Channels of the keys and values of each block, by its number in the file: double blocks, then single ones."""
    is_global: bool = True
    """Both forms read one embedding of the whole picture."""
    is_kolors: bool = False

    @property
    def acts_on_single_blocks(self) -> bool:
        """Whether it has weights for the single blocks too."""
        return self.form == "InstantX"

    @property
    def nothing_is_black(self) -> bool:
        """Whether the side without a picture sees a black one, as in XLabs' code; else a zero embedding."""
        return self.form == "XLabs"

    @property
    def family(self) -> str:
        """The family of models it is for."""
        return FLUX

    @property
    def encoder(self) -> str:
        """The image encoder it needs, in words."""
        encoder = ENCODER_OF_EMBEDDING.get(self.clip_width)
        return f"{encoder.name if encoder else 'an image encoder'} ({self.clip_width}-wide embeddings)"

    def __str__(self) -> str:
        blocks = f"{len(self.widths)} blocks" if self.acts_on_single_blocks else f"{len(self.widths)} double blocks"
        published = PUBLISHED_BLOCKS[self.form]
        fewer = f" (the published file has {published})" if len(self.widths) < published else ""
        return f"{self.form} for {FLUX}, {self.tokens} image tokens, {blocks}{fewer}, needs {self.encoder}"


Layout = AdapterLayout | FluxAdapterLayout
"""Of an adapter for a UNet, or for Flux."""


def is_for_flux(tensors: Mapping[str, Tensor]) -> bool:
    """Whether flattened tensors are, or are nearly, those of an adapter for Flux."""
    xlabs = any(name.startswith(XLABS_PROJECTOR) or "ip_adapter_double_stream_" in name for name in tensors)
    return xlabs or (numbers_every_block(tensors) and "image_proj.latents" not in tensors)  # which SD 3.5's have


def named_alike(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of either form under one set of names: `image_proj.*` and `ip_adapter.0.to_k_ip.weight`.

    Those of an adapter that neither form has keep their names.
    """
    # A training checkpoint holds the whole transformer beside it.
    return {_name(name): tensor for name, tensor in tensors.items() if name.startswith(OWN) or "ip_adapter" in name}


def recognise_flux(tensors: Mapping[str, Tensor]) -> FluxAdapterLayout:
    """The layout of an adapter for Flux, from tensors that are named alike.

    Raises UnknownAdapter, naming what is missing, for half of an adapter and for missing or misfitting tensors.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    numbers = sorted({int(found["number"]) for name in shapes if (found := LAYER.fullmatch(name))})
    has_projector = any(name.startswith("image_proj.") for name in shapes)
    if not numbers or not has_projector:
        lacks = "attention weights are" if has_projector else "projector is"
        # SD 3.5's attention weights have the names of InstantX's, which have no biases.
        or_else = "" if has_projector or any(name.endswith("_ip.bias") for name in shapes) else " or SD 3.5"
        raise UnknownAdapter(
            f"This file is half of an IP-Adapter for Flux{or_else}: its {lacks} missing. Download the whole file from "
            f"{PUBLISHED}."
        )
    try:
        return _layout(shapes, numbers)
    except KeyError as missing:
        raise UnknownAdapter(
            f"This IP-Adapter file for Flux is incomplete or of an unknown layout: {missing.args[0]} is missing or "
            f"does not fit. Download it again from {PUBLISHED}."
        ) from None


def _name(name: str) -> str:
    if name.startswith(XLABS_PROJECTOR):
        return f"image_proj.{name.removeprefix(XLABS_PROJECTOR)}"
    found = XLABS.fullmatch(name)
    return f"ip_adapter.{found['number']}.to_{found['part']}_ip.{found['leaf']}" if found else name


def _layout(shapes: Mapping[str, tuple[int, ...]], numbers: list[int]) -> FluxAdapterLayout:
    """Raises KeyError with the name of a tensor that is missing or does not fit."""
    form: FluxForm = "InstantX" if "image_proj.proj.2.weight" in shapes else "XLabs"
    (text_width,) = _shape(shapes, "image_proj.norm.weight", 1)
    last = "image_proj.proj.2" if form == "InstantX" else "image_proj.proj"
    rows, _ = _shape(shapes, f"{last}.weight", 2)
    if rows % text_width:
        raise KeyError(f"{last}.weight")
    _, clip_width = _shape(shapes, "image_proj.proj.0.weight" if form == "InstantX" else f"{last}.weight", 2)
    widths = {number: _width(shapes, number, text_width, form) for number in range(numbers[-1] + 1)}
    return FluxAdapterLayout(form, rows // text_width, clip_width, text_width, widths)


def _width(shapes: Mapping[str, tuple[int, ...]], number: int, text_width: int, form: FluxForm) -> int:
    key, value = (f"ip_adapter.{number}.to_{part}_ip" for part in "kv")
    width, reads = _shape(shapes, f"{key}.weight", 2)
    if reads != text_width or _shape(shapes, f"{value}.weight", 2) != (width, text_width):
        raise KeyError(f"{value}.weight")
    for name in (key, value) if form == "XLabs" else ():
        if _shape(shapes, f"{name}.bias", 1) != (width,):
            raise KeyError(f"{name}.bias")
    return width


def _shape(shapes: Mapping[str, tuple[int, ...]], name: str, dimensions: int) -> tuple[int, ...]:
    if name not in shapes or len(shapes[name]) != dimensions or 0 in shapes[name]:
        raise KeyError(name)
    return shapes[name]
