"""A cache of inversions in ComfyUI's temporary folder, which is emptied when ComfyUI starts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import folder_paths
from torch import Tensor

from ..conditioning import Conditioning, Text
from ..identity import stamp_of
from .runs import Inversion
from .trajectory_files import read_trajectory, write_trajectory


def cached_inversion(
    model: Any, pictures: Tensor, settings: object, text: Text, make: Callable[[], Inversion], version: str
) -> Inversion:
    """The inversion by `make`, or a cached one of the same model, pictures, settings and text.

    The repr of `settings` states what else the inversion depends on. The cache is not used for a model with patches
    other than of its weights, because they cannot be compared.
    """
    key = _cache_key(model, pictures, settings, text)
    if key is None:
        return make()
    path = Path(folder_paths.get_temp_directory()) / "semblance" / f"trajectory_{key}.safetensors"
    if path.exists():
        trajectory, extra = read_trajectory(path, path.name)
        return Inversion(trajectory, extra["noise"])
    inversion = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_trajectory(path, inversion.trajectory, version, {"noise": inversion.noise})
    return inversion


def _cache_key(model: Any, pictures: Tensor, settings: object, text: Text) -> str | None:
    """A digest of everything that an inversion depends on, or None if it cannot be known."""
    options = model.model_options
    transformer = options.get("transformer_options", {})
    foreign = set(options) - {"transformer_options"} or model.object_patches or model.hook_patches
    if any(transformer.values()) or foreign:
        return None
    digest = hashlib.sha256()
    whole = (settings, text.guidance, asdict(stamp_of(model)), str(model.patches_uuid), pictures.shape)
    digest.update(repr(whole).encode())
    for tensor in (pictures, *_tensors_of(text.positive), *(_tensors_of(text.negative) if text.guidance != 1 else ())):
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def _tensors_of(conditioning: Conditioning) -> list[Tensor]:
    return [
        tensor
        for context, extras in conditioning
        for tensor in (context, extras.get("pooled_output"))
        if isinstance(tensor, Tensor)
    ]
