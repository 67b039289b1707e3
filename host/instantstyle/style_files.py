"""Styles as files: the encoded pictures, the kind of adapter they were encoded for, and a thumbnail."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from torch import Tensor

from ...attention.references.style import StyleReference, Subtraction
from ..files import STYLES, UnreadableFile, find_file, free_path, read_saved, save_tensors, saved_name
from .adapter import LoadedAdapter
from .encoding import EncodedStyle

FORMAT = "semblance style 1"


def save_style(style: EncodedStyle, name: str, version: str) -> str:
    """Writes a style as one safetensors file in models/semblance/styles and returns the name of the file.

    Raises UnwritableFile for a name or a folder that cannot be
    written.
    """
    reference, layout = style.reference, style.adapter.layout
    tensors = {f"picture.{index}": picture.contiguous() for index, picture in enumerate(reference.pictures)}
    described = {
        "format": FORMAT,
        "semblance": version,
        "adapter": str(layout),
        "clip_width": layout.clip_width,
        "is_global": layout.is_global,
        "shares": reference.weights,  # the key in files of format 1
        "subtracted": [asdict(subtraction) for subtraction in reference.subtracted],
        "modelspec.thumbnail": style.thumbnail,
    }
    metadata = {key: entry if isinstance(entry, str) else json.dumps(entry) for key, entry in described.items()}
    path = free_path(STYLES, name)
    save_tensors(path, {**tensors, "negative": reference.negative.contiguous()}, metadata)
    return saved_name(STYLES, path)


def load_style(name: str, adapter: LoadedAdapter) -> EncodedStyle:
    """Opens a saved style for use with `adapter`.

    Raises UnreadableFile for a missing, damaged or foreign file, and ValueError if the style was made for an adapter
    with another image encoder.
    """
    tensors, metadata = read_saved(STYLES, find_file(name, STYLES), name, FORMAT)
    try:
        made_for = (json.loads(metadata["clip_width"]), json.loads(metadata["is_global"]))
        style = EncodedStyle(_reference(tensors, metadata, *made_for), adapter, metadata["modelspec.thumbnail"])
    except (KeyError, TypeError, ValueError) as fault:
        raise UnreadableFile(f"'{name}' is damaged ({fault}). Save the style again.") from fault
    if made_for != (adapter.layout.clip_width, adapter.layout.is_global):
        raise ValueError(
            f"The style '{name}' was made for an adapter of the kind '{metadata.get('adapter')}', but the adapter "
            f"connected is '{adapter.name}': {adapter.layout}. Load an adapter of the style's kind."
        )
    return style


def _reference(
    tensors: dict[str, Tensor], metadata: dict[str, str], clip_width: int, is_global: bool
) -> StyleReference:
    """Raises KeyError, TypeError or ValueError if the file is damaged."""
    weights = tuple(float(weight) for weight in json.loads(metadata["shares"]))
    subtracted: list[dict[str, Any]] = json.loads(metadata["subtracted"])
    pictures = tuple(tensors[f"picture.{index}"] for index in range(len(weights)))
    negative = tensors["negative"]
    for tensor in (*pictures, negative):
        if tensor.ndim != (2 if is_global else 3) or tensor.shape[-1] != clip_width or not tensor.isfinite().all():
            raise ValueError(f"its tensors do not fit an adapter that reads {clip_width} channels")
    if not pictures or min(weights) <= 0 or len(negative) != 1:
        raise ValueError("its pictures, their weights and its negative do not fit together")
    return StyleReference(pictures, negative, weights, tuple(Subtraction(**entry) for entry in subtracted))
