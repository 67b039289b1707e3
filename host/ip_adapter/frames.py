"""Weights that change from frame to frame, and the pictures that go with them, as in ComfyUI_IPAdapter_plus."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, TypeVar, get_args

import torch

Timing = Literal["custom", "linear", "ease_in_out", "ease_in", "ease_out", "random"]
TIMINGS: tuple[Timing, ...] = get_args(Timing)
Method = Literal["full batch", "shift batches", "alternate batches"]
METHODS: tuple[Method, ...] = get_args(Method)
Frame = TypeVar("Frame", int, float)
SLOPES: Mapping[str, Callable[[float], float]] = {
    "linear": lambda x: x,
    "ease_in_out": lambda x: (1 - math.cos(math.pi * x)) / 2,
    "ease_in": lambda x: math.sin(math.pi * x / 2),
    "ease_out": lambda x: 1 - math.cos(math.pi * x / 2),
}


@dataclass(frozen=True)
class FrameSettings:
    """How weights run over frames."""

    written: tuple[float, ...]
    """As the user wrote them; of all but `custom` the first and the last count."""
    timing: Timing
    frames: int
    start: int
    """The frame at which the weight begins to change."""
    end: int
    """The frame before which it has arrived at the last one."""
    frames_before: int
    frames_after: int
    method: Method
    seed: int = 0


@dataclass(frozen=True)
class Frames:
    """A weight for each frame, and by number the picture that it shows and the one that it changes to or from."""

    weights: tuple[float, ...]
    pictures: tuple[int, ...] | None
    others: tuple[int, ...] | None


def line_up(settings: FrameSettings, pictures: int) -> Frames:
    """The frames of one run of weights or, with several pictures, of a run for each or for each change.

    Raises ValueError for a change that ends before it begins, and for one picture where changes need two.
    """
    run = run_of_weights(settings)
    if not pictures:
        return Frames(_lengthened(run, run[0], run[-1], settings), None, None)
    changes = _changes(pictures, settings.method)
    weights: list[float] = []
    for number in range(len(changes)):
        swings_back = settings.method == "alternate batches" and number % 2
        weights += [1 - weight for weight in run] if swings_back else run
    sides: list[tuple[int, ...] | None] = []
    for side in zip(*changes, strict=True):
        shown = [picture for picture in side for _ in run]
        sides.append(_lengthened(shown, 0, pictures - 1, settings))
    if settings.method == "full batch":
        sides[1] = None
    return Frames(_lengthened(weights, weights[0], weights[-1], settings), *sides)


def run_of_weights(settings: FrameSettings) -> list[float]:
    """The weights of the frames of one run. Raises ValueError for a change that ends before it begins."""
    written = settings.written or (0.0,)
    if settings.timing == "custom":
        return list(written)
    frames = max(settings.frames, 2)
    start, end = settings.start, min(settings.end, frames)
    if start > end:
        raise ValueError(
            f"The weights begin to change at frame {start}, but have to arrive by frame {end} of {frames}. Let "
            "start_frame come before end_frame, or raise frames."
        )
    first, last = written[0], written[-1]
    changing = [first + (last - first) * part for part in _parts(settings, end - start)]
    return [first] * start + [*changing[:-1], *([last] if changing else [])] + [last] * (frames - end)


def _parts(settings: FrameSettings, count: int) -> list[float]:
    """How far the weight has come at each of the changing frames; at the last one it has arrived."""
    if settings.timing == "random":
        return torch.rand(count, generator=torch.Generator().manual_seed(settings.seed), dtype=torch.float64).tolist()
    return [SLOPES[settings.timing](frame / max(count - 1, 1)) for frame in range(count)]


def _changes(pictures: int, method: Method) -> list[tuple[int, int]]:
    """By run, the number of the picture shown and of the other one."""
    if method == "full batch":
        return [(number, number) for number in range(pictures)]
    if pictures < 2:
        raise ValueError(
            f"'{method}' goes from picture to picture, but there is one alone. Connect a batch at 'image'."
        )
    pairs = list(pairwise(range(pictures)))
    if method == "shift batches":
        return pairs
    return [(after, before) if number % 2 else (before, after) for number, (before, after) in enumerate(pairs)]


def _lengthened(frames: Sequence[Frame], first: Frame, last: Frame, settings: FrameSettings) -> tuple[Frame, ...]:
    return (*[first] * settings.frames_before, *frames, *[last] * settings.frames_after)
