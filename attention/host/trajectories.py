"""Trajectories as files: kept across restarts, and, in the temporary folder, found again while ComfyUI runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import folder_paths
import torch
from torch import Tensor

from ..functional.inversion import CONVENTIONS, Convention
from ..reference import ModelStamp, ReferenceTrajectory
from .files import TRAJECTORIES, UnreadableFile, find_file, free_path, read_saved, save_tensors, saved_name
from .inversion import Conditioning, Inversion, Text, stamp_of

FORMAT = "semblance.trajectory.1"


def save_trajectory(trajectory: ReferenceTrajectory, name: str, version: str, half: bool) -> tuple[str, float]:
    """Writes a trajectory as one safetensors file in models/semblance/trajectories.

    Returns the name it got, and the relative error that half precision brings (0 without it): the greater of that of
    the latents and that of the noises.
    """
    latents, error = _stored(trajectory.latents, half)
    noises = None
    if trajectory.noises is not None:
        noises, of_noises = _stored(trajectory.noises, half)
        error = max(error, of_noises)
    path = free_path(TRAJECTORIES, name)
    _write(path, replace(trajectory, latents=latents, noises=noises), version)
    return saved_name(TRAJECTORIES, path), error


def load_trajectory(name: str) -> ReferenceTrajectory:
    """Opens a saved trajectory. Raises UnreadableFile for a missing, damaged or foreign file."""
    return _read(find_file(name, TRAJECTORIES), name)[0]


def made_before(
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
        trajectory, tensors = _read(path, path.name)
        return Inversion(trajectory, tensors["noise"])
    inversion = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, inversion.trajectory, version, noise=inversion.noise.contiguous())
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


def _stored(tensor: Tensor, half: bool) -> tuple[Tensor, float]:
    """A tensor as it is written, and the relative error this brings."""
    stored = tensor.half() if half else tensor
    return stored, ((stored.float() - tensor).norm() / tensor.norm().clamp_min(1e-12)).item()


def _tensors_of(conditioning: Conditioning) -> list[Tensor]:
    return [
        tensor
        for context, extras in conditioning
        for tensor in (context, extras.get("pooled_output"))
        if isinstance(tensor, Tensor)
    ]


def _write(path: Path, trajectory: ReferenceTrajectory, version: str, **more: Tensor) -> None:
    tensors = {"latents": trajectory.latents.contiguous(), "context": trajectory.context.contiguous(), **more}
    if trajectory.vector is not None:
        tensors["vector"] = trajectory.vector.contiguous()
    if trajectory.noises is not None:
        tensors["noises"] = trajectory.noises.contiguous()
    described = {
        "format": FORMAT,
        "semblance": version,
        "sigmas": json.dumps(trajectory.sigmas),
        "steps": json.dumps(trajectory.steps),
        "convention": trajectory.convention,
        "guidance": json.dumps(trajectory.guidance),
        "stamp": json.dumps(asdict(trajectory.stamp)),
    }
    save_tensors(path, tensors, described)


def _read(path: Path, name: str) -> tuple[ReferenceTrajectory, dict[str, Tensor]]:
    """The trajectory in a file, and all tensors that lie there."""
    tensors, metadata = read_saved(TRAJECTORIES, path, name, FORMAT)
    try:
        return _trajectory(tensors, metadata), tensors
    except (KeyError, TypeError, ValueError) as fault:
        raise UnreadableFile(f"'{name}' is damaged ({fault}). Save the trajectory again.") from fault


def _trajectory(tensors: dict[str, Tensor], metadata: dict[str, str]) -> ReferenceTrajectory:
    """Raises KeyError, TypeError or ValueError where the file is not what it says of itself."""
    sigmas = tuple(float(sigma) for sigma in json.loads(metadata["sigmas"]))
    conventions: Mapping[str, Convention] = {known: known for known in CONVENTIONS}
    if tensors["latents"].ndim != 5 or 0 in tensors["latents"].shape or tensors["context"].ndim != 3:
        raise ValueError("its tensors have the wrong shape")
    if list(sigmas) != sorted(sigmas) or not all(torch.isfinite(torch.tensor(sigmas))):
        raise ValueError("its noise levels are not in order")
    return ReferenceTrajectory(
        latents=tensors["latents"].float(),
        sigmas=sigmas,
        steps=int(json.loads(metadata["steps"])),
        convention=conventions[metadata["convention"]],
        stamp=ModelStamp(**json.loads(metadata["stamp"])),
        context=tensors["context"].float(),
        vector=tensors["vector"].float() if "vector" in tensors else None,
        guidance=float(json.loads(metadata["guidance"])),
        noises=tensors["noises"].float() if "noises" in tensors else None,
    )
