"""Pools of drawn pictures with their latents, and embeddings if asked, encoded once before a training starts."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..layouts import Views, draw_views, sample_views
from ..world import Content, Drawing, Scenes, Style, draw, sample_scenes
from .loop import RUNS_FOLDER, half_precision
from .parts import Autoencoder, PictureEmbedder

CHUNK = 64  # pictures drawn and encoded at a time
SHARD = 512  # and written as one file


@dataclass(frozen=True, eq=False)
class Pool:
    """Pictures of scenes, encoded."""

    scenes: Scenes
    latents: Tensor  # (scenes, 4, 16, 16) half precision, at SDXL's scale
    folder: Path

    def __len__(self) -> int:
        return len(self.latents)

    def coverage(self) -> Tensor:
        """How much of each latent the shapes cover: (scenes, 16, 16)."""
        chunks = torch.arange(len(self)).split(CHUNK)
        return torch.cat([coverage(draw(self.scenes.take(rows), 64)) for rows in chunks])

    def seen(self, embedder: PictureEmbedder, device: torch.device) -> Tensor:
        """What the embedder makes of each picture, computed once: (scenes, ...) half precision."""
        return self.made(f"seen_{embedder.variant}", lambda pictures: embedder(pictures).half(), device)

    def made(self, name: str, of: Callable[[Tensor], Tensor], device: torch.device) -> Tensor:
        """What `of` makes of each picture, computed once and kept under `name`: (scenes, ...)."""
        return _once(self.folder / name, len(self), lambda start: of(_drawn(self.scenes, start, device)))


@dataclass(frozen=True, eq=False)
class ViewPool:
    """Pictures of views, encoded."""

    chunks: tuple[Views, ...]
    latents: Tensor  # (views, 4, 16, 16) half precision, at SDXL's scale
    folder: Path

    def coverage(self) -> Tensor:
        """How much of each latent the figures cover: (views, 16, 16)."""
        return torch.cat([coverage(draw_views(chunk, 64)) for chunk in self.chunks])

    def seen(self, embedder: PictureEmbedder, device: torch.device) -> Tensor:
        """As Pool.seen."""
        return self.made(f"seen_{embedder.variant}", lambda pictures: embedder(pictures).half(), device)

    def made(self, name: str, of: Callable[[Tensor], Tensor], device: torch.device) -> Tensor:
        """As Pool.made."""

        def made(start: int) -> Tensor:
            return of(draw_views(self.chunks[start // CHUNK]).pictures.to(device))

        return _once(self.folder / name, len(self.latents), made)


def coverage(drawing: Drawing) -> Tensor:
    """How much of each of 16 x 16 latents the drawn figures cover, of drawings 64 pixels square."""
    return functional.avg_pool2d(drawing.masks.amax(dim=1), 4)


def open_pool(count: int, seed: int, device: torch.device) -> Pool:
    """Reads the pool of this size and seed, encoding it if it is not there yet."""
    scenes = _join([sample_scenes(CHUNK, seed + start) for start in range(0, count, CHUNK)])
    return encoded_pool(scenes, f"{count}_{seed}", device)


def open_view_pool(count: int, seed: int, device: torch.device) -> ViewPool:
    """As `open_pool`, of views."""
    chunks = tuple(sample_views(CHUNK, seed + start) for start in range(0, count, CHUNK))
    encode = _encoder(device)

    def latents(start: int) -> Tensor:
        return encode(draw_views(chunks[start // CHUNK]).pictures.to(device))

    folder = RUNS_FOLDER / "pool" / f"views_{count}_{seed}"
    return ViewPool(chunks, _once(folder, count, latents), folder)


def encoded_pool(scenes: Scenes, name: str, device: torch.device) -> Pool:
    """A pool of these scenes, whose number is a multiple of SHARD, kept under `name`."""
    folder, encode = RUNS_FOLDER / "pool" / name, _encoder(device)
    latents = _once(folder / "latents", len(scenes), lambda start: encode(_drawn(scenes, start, device)))
    return Pool(scenes, latents, folder)


def _encoder(device: torch.device) -> Callable[[Tensor], Tensor]:
    autoencoder = Autoencoder.load("sdxl", device)

    def encode(pictures: Tensor) -> Tensor:
        with half_precision(device):
            return autoencoder.encode(pictures.contiguous(memory_format=torch.channels_last)).half()

    return encode


def _drawn(scenes: Scenes, start: int, device: torch.device) -> Tensor:
    return draw(scenes.take(torch.arange(start, start + CHUNK)), device=device).pictures


def _once(folder: Path, count: int, encoded: Callable[[int], Tensor]) -> Tensor:
    """What `encoded` gives for CHUNK pictures from each start, in files of SHARD rows; those already there are read."""
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[Any] = []
    for start in range(0, count, SHARD):
        path = folder / f"{start:06d}.pt"
        if not path.exists():
            rows = torch.cat([encoded(first).cpu() for first in range(start, start + SHARD, CHUNK)])
            torch.save(rows, path.with_suffix(".new"))
            path.with_suffix(".new").replace(path)
            print(f"{folder.name} {start + SHARD}/{count}", flush=True)
        shards.append(torch.load(path, weights_only=True))
    return torch.cat(shards)


def _join(parts: list[Scenes]) -> Scenes:
    contents, styles = [part.content for part in parts], [part.style for part in parts]
    return Scenes(Content.concatenate(contents), Style.concatenate(styles))
