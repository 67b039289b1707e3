"""A template as somebody would queue it: inputs changed, run over ComfyUI's HTTP API, the picture saved."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from harness.library import ROOT
from harness.server import ComfyUIServer, History, Progress, Prompt

from .captions import full_captions
from .training.sheets import save_picture
from .world import Scenes, draw

STYLE_PICTURE = 4
"""The output of Load Demo Model that gives it."""
Changes = Mapping[str, Mapping[str, Any]]
"""Inputs to change, by the type or the title of their node; `class_type` among them swaps the node for another."""


@dataclass(frozen=True)
class Shot:
    """A picture with its name and what was measured on it."""

    name: str
    picture: Path
    note: str = ""
    seconds: float = 0.0


def template(name: str) -> Prompt:
    """The API form of a template in workflows/."""
    return json.loads((ROOT / "tests" / "workflows" / f"{name}.json").read_text(encoding="utf-8"))


def changed(prompt: Prompt, changes: Changes) -> Prompt:
    """A copy of `prompt` with inputs changed, and nodes swapped: the demo model for a checkpoint, for instance."""
    return {node_id: _changed_node(node, changes) for node_id, node in prompt.items()}


def in_the_style_of(picture: str, prompt: Prompt) -> Prompt:
    """A copy of `prompt` with an input picture of the server in place of the one that comes with the demo model."""
    (demo,) = (number for number, node in prompt.items() if node["class_type"] == "SemblanceLoadDemo")
    own = [demo, STYLE_PICTURE]
    copy = {
        number: {
            **node,
            "inputs": {name: ["style", 0] if value == own else value for name, value in node["inputs"].items()},
        }
        for number, node in prompt.items()
    }
    load = {"class_type": "LoadImage", "inputs": {"image": picture}, "_meta": {"title": "Style picture"}}
    return {**copy, "style": load}


def _changed_node(node: Mapping[str, Any], changes: Changes) -> dict[str, Any]:
    new = {**changes.get(node["class_type"], {}), **changes.get(node["_meta"]["title"], {})}
    swapped = new.pop("class_type", None)
    return {
        **node,
        "class_type": swapped or node["class_type"],
        "inputs": new if swapped else {**node["inputs"], **new},
    }


def shoot(server: ComfyUIServer, name: str, prompt: Prompt, path: Path) -> Shot:
    """Runs the prompt, which saves one picture, and keeps that at `path`."""
    (shot,) = shoot_batch(server, name, prompt, [path])
    return shot


def shoot_batch(
    server: ComfyUIServer, name: str, prompt: Prompt, paths: Sequence[Path], previews: Sequence[Path] = ()
) -> list[Shot]:
    """Runs the prompt and keeps the pictures it saves at `paths`, one for each; those it previews at any `previews`."""
    history, seconds = follow(server, name, prompt)
    kept = [(server.outputs(history), paths), (server.outputs(history, "temp") if previews else [], previews)]
    for made, wanted in kept:
        for picture, path in zip(made, wanted, strict=True):
            shutil.copyfile(picture, path)
    return [Shot(name, path, seconds=seconds / len(paths)) for path in (*paths, *previews)]


def follow(server: ComfyUIServer, name: str, prompt: Prompt) -> tuple[History, float]:
    """Runs the prompt, shows how far it has come, and says what it gave and how many seconds it took."""
    started = time.perf_counter()
    history = server.run(prompt, on_progress=lambda progress: _show(name, progress))
    seconds = time.perf_counter() - started
    print(f"\r{name}: {seconds:.1f} s".ljust(70))
    return history, seconds


def shown_by(server: ComfyUIServer, history: History, prompt: Prompt, node: str) -> list[Path]:
    """The pictures and files that the nodes of one type showed or saved, in the order in which they named them."""
    folder = server.base_directory
    return [
        folder / file["type"] / file["subfolder"] / file["filename"]
        for node_id, outputs in history["outputs"].items()
        if prompt[node_id]["class_type"] == node
        for kind in ("images", "files")
        for file in outputs.get(kind, [])
    ]


def drawn(name: str, scene: Scenes, path: Path) -> Shot:
    """One drawing of the world, kept at `path`, with the whole of its caption under it."""
    save_picture(draw(scene, 256).pictures[0], path)
    return Shot(name, path, full_captions(scene)[0].replace(", ", ",\n", 1))


def read_tensor(path: Path) -> Tensor:
    """A picture as (1, 3, height, width) in 0..1."""
    with Image.open(path) as picture:
        rgb = picture.convert("RGB")
        levels = torch.frombuffer(bytearray(rgb.tobytes()), dtype=torch.uint8)
        return levels.reshape(1, rgb.height, rgb.width, 3).movedim(-1, 1) / 255


def slug(text: str) -> str:
    """A name for a file: `SD 1.5` becomes sd_15."""
    return re.sub(r"[^a-z0-9_]", "", text.lower().replace(" ", "_"))


def _show(name: str, progress: Progress) -> None:
    if progress.maximum > 1:
        print(f"\r{name}: step {progress.value} of {progress.maximum}".ljust(70), end="", flush=True)
