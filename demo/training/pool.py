"""A pool of drawn scenes with their latents, and embeddings if asked, encoded once before a training starts."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..world import Content, Scenes, Style, draw, sample_scenes
from .loop import RUNS_FOLDER, half_precision
from .parts import Autoencoder, PictureEmbedder

CHUNK = 64  # scenes drawn and encoded at a time
SHARD = 512  # and written as one file


@dataclass(frozen=True, eq=False)
class Pool:
    scenes: Scenes
    latents: Tensor  # (scenes, 4, 16, 16) half precision, at SDXL's scale
    folder: Path

    def __len__(self) -> int:
        return len(self.latents)

    def seen(self, embedder: PictureEmbedder, device: torch.device) -> Tensor:
        """What the embedder makes of each picture, computed once: (scenes, ...) half precision."""
        return _once(
            self.folder / f"seen_{embedder.variant}", self.scenes, lambda pictures: embedder(pictures).half(), device
        )


def open_pool(count: int, seed: int, device: torch.device) -> Pool:
    """Reads the pool of this size and seed, encoding it if it is not there yet."""
    scenes = _join([sample_scenes(CHUNK, seed + start) for start in range(0, count, CHUNK)])
    return encoded_pool(scenes, f"{count}_{seed}", device)


def encoded_pool(scenes: Scenes, name: str, device: torch.device) -> Pool:
    """A pool of these scenes, whose number is a multiple of SHARD, kept under `name`."""
    folder = RUNS_FOLDER / "pool" / name
    autoencoder = Autoencoder.load("sdxl", device)

    def latents(pictures: Tensor) -> Tensor:
        with half_precision(device):
            return autoencoder.encode(pictures.contiguous(memory_format=torch.channels_last)).half()

    return Pool(scenes, _once(folder / "latents", scenes, latents, device), folder)


def _once(folder: Path, scenes: Scenes, encode: Callable[[Tensor], Tensor], device: torch.device) -> Tensor:
    """All scenes drawn and encoded, in files of SHARD rows each; those already there are read."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = []
    for start in range(0, len(scenes), SHARD):
        path = folder / f"{start:06d}.pt"
        if not path.exists():
            chunks = [scenes.take(torch.arange(first, first + CHUNK)) for first in range(start, start + SHARD, CHUNK)]
            rows = torch.cat([encode(draw(chunk, device=device).pictures).cpu() for chunk in chunks])
            torch.save(rows, path.with_suffix(".new"))
            path.with_suffix(".new").replace(path)
            print(f"{folder.name} {start + SHARD}/{len(scenes)}", flush=True)
        shards.append(torch.load(path, weights_only=True))
    return torch.cat(shards)


def _join(parts: list[Scenes]) -> Scenes:
    contents, styles = [part.content for part in parts], [part.style for part in parts]
    return Scenes(Content.concatenate(contents), Style.concatenate(styles))
