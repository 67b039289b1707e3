"""A style between nodes and on disk: the reference, the adapter it was made for, a thumbnail."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy
import torch
from PIL import Image
from torch import Tensor

from ..reference import StyleReference, Subtraction
from .files import STYLES, UnreadableFile, find_file, free_path, read_saved, save_tensors, saved_name
from .weights import LoadedAdapter

FORMAT = "semblance style 1"
THUMBNAIL = 192
"""Pixels of a thumbnail's long side."""


@dataclass(frozen=True, eq=False)
class Style:
    """What a REFERENCE socket carries."""

    reference: StyleReference
    adapter: LoadedAdapter
    thumbnail: str
    """A JPEG picture as a data URL, or an empty text."""

    def __repr__(self) -> str:
        return f"{self.reference} for {self.adapter}"


def thumbnail_of(pictures: Tensor) -> str:
    """The first pictures (pictures, height, width, 3), side by side, as a small JPEG data URL."""
    strip = torch.cat(list(pictures[:4]), dim=1)
    image = Image.fromarray((strip.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())
    image.thumbnail((THUMBNAIL * min(len(pictures), 4), THUMBNAIL))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def thumbnail_picture(style: Style) -> Tensor:
    """The thumbnail as an IMAGE, (1, height, width, 3); black where a file has none that can be read."""
    return picture_of(style.thumbnail)


def picture_of(thumbnail: str) -> Tensor:
    """A JPEG data URL as an IMAGE, (1, height, width, 3); black where it is none."""
    try:
        file = io.BytesIO(base64.b64decode(thumbnail.partition(",")[2]))
        image = Image.open(file).convert("RGB")
    except (ValueError, OSError, Image.DecompressionBombError):
        image = Image.new("RGB", (THUMBNAIL, THUMBNAIL))
    return torch.from_numpy(numpy.array(image)).float().unsqueeze(0) / 255


def save_style(style: Style, name: str, version: str) -> str:
    """Writes a style as one safetensors file in models/semblance/styles and returns the name it got."""
    reference, layout = style.reference, style.adapter.layout
    tensors = {f"picture.{place}": picture.contiguous() for place, picture in enumerate(reference.pictures)}
    described = {
        "format": FORMAT,
        "semblance": version,
        "adapter": str(layout),
        "clip_width": layout.clip_width,
        "is_global": layout.is_global,
        "shares": reference.shares,
        "subtracted": [asdict(subtraction) for subtraction in reference.subtracted],
        "modelspec.thumbnail": style.thumbnail,
    }
    metadata = {key: entry if isinstance(entry, str) else json.dumps(entry) for key, entry in described.items()}
    path = free_path(STYLES, name)
    save_tensors(path, {**tensors, "negative": reference.negative.contiguous()}, metadata)
    return saved_name(STYLES, path)


def load_style(name: str, adapter: LoadedAdapter) -> Style:
    """Opens a saved style for use with `adapter`.

    Raises UnreadableFile for a missing, damaged or foreign file, and ValueError when the style was made for an
    adapter with another image encoder.
    """
    tensors, metadata = read_saved(STYLES, find_file(name, STYLES), name, FORMAT)
    try:
        made_for = (json.loads(metadata["clip_width"]), json.loads(metadata["is_global"]))
        style = Style(_reference(tensors, metadata, *made_for), adapter, metadata["modelspec.thumbnail"])
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
    """Raises KeyError, TypeError or ValueError where the file is not what it says of itself."""
    shares = [float(share) for share in json.loads(metadata["shares"])]
    subtracted: list[dict[str, Any]] = json.loads(metadata["subtracted"])
    pictures = tuple(tensors[f"picture.{place}"] for place in range(len(shares)))
    negative = tensors["negative"]
    for tensor in (*pictures, negative):
        if tensor.ndim != (2 if is_global else 3) or tensor.shape[-1] != clip_width or not tensor.isfinite().all():
            raise ValueError(f"its tensors do not fit an adapter that reads {clip_width} channels")
    if not pictures or min(shares) <= 0 or len(negative) != 1:
        raise ValueError("its pictures, their weights and its negative do not fit together")
    return StyleReference(pictures, negative, tuple(shares), tuple(Subtraction(**entry) for entry in subtracted))
