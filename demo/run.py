"""One template, several settings: queued over ComfyUI's HTTP API, saved, measured."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
from PIL import Image

from hosting.library import ROOT
from hosting.server import ComfyUIServer, Progress, Prompt

from .picture import CONTENT

if TYPE_CHECKING:
    from .stand_ins import ModelFiles

SIDE = 128  # pixels
STEPS = 12

SETTINGS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "plain": {"SemblanceInstantStyle": {"strength": 0.0}},
    "all blocks": {"SemblanceInstantStyle": {"blocks": "all"}, "SemblanceSubtractContent": {"strength": 0.0}},
    "style block": {"SemblanceInstantStyle": {"blocks": "style"}, "SemblanceSubtractContent": {"strength": 0.0}},
    "style block, star subtracted": {
        "SemblanceInstantStyle": {"blocks": "style"},
        "SemblanceSubtractContent": {"strength": 0.5, "text": CONTENT},
    },
}
"""For each picture of the contact sheet, the inputs it changes in the template, by node type."""


@dataclass(frozen=True)
class Shot:
    """A picture with its name, and how long it took."""

    name: str
    picture: Path
    seconds: float = 0.0


def template_with(name: str, files: ModelFiles, style_picture: str) -> Prompt:
    """The API form of a template, loading `files` and `style_picture`, at the size of the demo."""
    prompt: Prompt = json.loads((ROOT / "tests" / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    changes = {
        "CheckpointLoaderSimple": {"ckpt_name": files.checkpoint},
        "SemblanceLoadAdapter": {"file": files.adapter},
        "CLIPVisionLoader": {"clip_name": files.image_encoder},
        "LoadImage": {"image": style_picture},
        "EmptyLatentImage": {"width": SIDE, "height": SIDE},
        "KSampler": {"steps": STEPS},
    }
    return changed(prompt, changes)


def changed(prompt: Prompt, changes: Mapping[str, Mapping[str, Any]]) -> Prompt:
    """A copy of `prompt` with inputs changed, by node type."""
    return {
        node_id: {**node, "inputs": {**node["inputs"], **changes.get(node["class_type"], {})}}
        for node_id, node in prompt.items()
    }


def compare(server: ComfyUIServer, prompt: Prompt, output: Path) -> list[Shot]:
    """Runs `prompt` once for each of SETTINGS and saves the pictures in `output`."""
    return [_shoot(server, name, changed(prompt, changes), output) for name, changes in SETTINGS.items()]


def report(shots: list[Shot]) -> str:
    """What was measured, one picture a line; the first is the one the others are compared with."""
    plain = _levels(shots[0])
    lines = [f"{'picture':32}{'seconds':>9}{'difference from plain':>24}"]
    for shot in shots:
        difference = numpy.abs(_levels(shot) - plain).mean()
        lines.append(f"{shot.name:32}{shot.seconds:9.1f}{difference:17.2f} of 255")
    return "\n".join(lines)


def _shoot(server: ComfyUIServer, name: str, prompt: Prompt, output: Path) -> Shot:
    started = time.perf_counter()
    history = server.run(prompt, on_progress=lambda progress: _show(name, progress))
    seconds = time.perf_counter() - started
    (saved,) = server.outputs(history)
    picture = output / f"{name.replace(',', '').replace(' ', '_')}.png"
    shutil.copyfile(saved, picture)
    print(f"\r{name}: {seconds:.1f} s".ljust(60))
    return Shot(name, picture, seconds)


def _show(name: str, progress: Progress) -> None:
    if progress.maximum > 1:
        print(f"\r{name}: step {progress.value} of {progress.maximum}".ljust(60), end="", flush=True)


def _levels(shot: Shot) -> numpy.ndarray[Any, numpy.dtype[numpy.float64]]:
    return numpy.asarray(Image.open(shot.picture).convert("RGB"), dtype=numpy.float64)
