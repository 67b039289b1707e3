"""Inversions made once: found again in ComfyUI's temporary folder while it runs."""

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
    """The inversion of `make`, or the one made before of the same pictures, model, text and settings.

    The repr of `settings` tells what else the inversion depends on. It is looked for in ComfyUI's temporary folder,
    which is emptied when ComfyUI starts. A model that other nodes have patched beyond its weights is inverted anew,
    since what they do cannot be compared.
    """
    key = _key(model, pictures, settings, text)
    if key is None:
        return make()
    path = Path(folder_paths.get_temp_directory()) / "semblance" / f"trajectory_{key}.safetensors"
    if path.exists():
        trajectory, tensors = read_trajectory(path, path.name)
        return Inversion(trajectory, tensors["noise"])
    inversion = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_trajectory(path, inversion.trajectory, version, noise=inversion.noise.contiguous())
    return inversion


def _key(model: Any, pictures: Tensor, settings: object, text: Text) -> str | None:
    """A digest of all that an inversion depends on, or None where that cannot be known."""
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
