"""Trajectories as files.

`save_trajectory` and `load_trajectory` use names in models/semblance/trajectories; `write_trajectory` and
`read_trajectory` use paths, for the cache too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from ...attention.functional.inversion import CONVENTIONS, Convention
from ...attention.references.trajectory import ModelStamp, ReferenceTrajectory
from ..files import TRAJECTORIES, UnreadableFile, find_file, free_path, read_saved, save_tensors, saved_name

FORMAT = "semblance.trajectory.1"


def save_trajectory(trajectory: ReferenceTrajectory, name: str, version: str, half: bool) -> tuple[str, float]:
    """Writes a trajectory as one safetensors file in models/semblance/trajectories.

    Returns the name of the file and the relative error of half precision, 0 without it. With noises it is the greater
    of their error and that of the latents. Raises UnwritableFile for a name or a folder that cannot be
    written.
    """
    latents, error = _stored(trajectory.latents, half)
    noises = None
    if trajectory.noises is not None:
        noises, noise_error = _stored(trajectory.noises, half)
        error = max(error, noise_error)
    path = free_path(TRAJECTORIES, name)
    write_trajectory(path, replace(trajectory, latents=latents, noises=noises), version)
    return saved_name(TRAJECTORIES, path), error


def load_trajectory(name: str) -> ReferenceTrajectory:
    """Opens a saved trajectory. Raises UnreadableFile for a missing, damaged or foreign file."""
    return read_trajectory(find_file(name, TRAJECTORIES), name)[0]


def _stored(tensor: Tensor, half: bool) -> tuple[Tensor, float]:
    """A tensor as it is written, and its relative error."""
    stored = tensor.half() if half else tensor
    return stored, ((stored.float() - tensor).norm() / tensor.norm().clamp_min(1e-12)).item()


def write_trajectory(
    path: Path, trajectory: ReferenceTrajectory, version: str, extra: Mapping[str, Tensor] | None = None
) -> None:
    """Writes a trajectory, and extra tensors by name, as one safetensors file."""
    tensors = {"latents": trajectory.latents, "context": trajectory.context, **(extra or {})}
    if trajectory.vector is not None:
        tensors["vector"] = trajectory.vector
    if trajectory.noises is not None:
        tensors["noises"] = trajectory.noises
    described = {
        "format": FORMAT,
        "semblance": version,
        "sigmas": json.dumps(trajectory.sigmas),
        "steps": json.dumps(trajectory.steps),
        "convention": trajectory.convention,
        "guidance": json.dumps(trajectory.guidance),
        "embedded_guidance": json.dumps(trajectory.embedded_guidance),
        "stamp": json.dumps(asdict(trajectory.stamp)),
    }
    save_tensors(path, {name: tensor.contiguous() for name, tensor in tensors.items()}, described)


def read_trajectory(path: Path, name: str) -> tuple[ReferenceTrajectory, dict[str, Tensor]]:
    """The trajectory in a file, and all tensors of the file by name; `name` is for messages.

    Raises UnreadableFile for a damaged or foreign file.
    """
    tensors, metadata = read_saved(TRAJECTORIES, path, name, FORMAT)
    try:
        return _trajectory(tensors, metadata), tensors
    except (KeyError, TypeError, ValueError) as fault:
        raise UnreadableFile(f"'{name}' is damaged ({fault}). Save the trajectory again.") from fault


def _trajectory(tensors: dict[str, Tensor], metadata: dict[str, str]) -> ReferenceTrajectory:
    """Raises KeyError, TypeError or ValueError if the file is damaged."""
    embedded = json.loads(metadata.get("embedded_guidance", "null"))
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
        stamp=ModelStamp.read(json.loads(metadata["stamp"])),
        context=tensors["context"].float(),
        vector=tensors["vector"].float() if "vector" in tensors else None,
        guidance=float(json.loads(metadata["guidance"])),
        embedded_guidance=None if embedded is None else float(embedded),
        noises=tensors["noises"].float() if "noises" in tensors else None,
    )
