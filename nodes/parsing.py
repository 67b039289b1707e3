"""What users type into nodes: block weights, curves, lists of weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..attention.engine.scope import Keyframes, finite

LARGEST = 100.0
"""Of weights of blocks and curves, either sign. Far less makes noise of a picture already."""


def parse_block_weights(text: str, known: Iterable[str]) -> dict[str, float]:
    """Reads `output.1=1.0, input.8=0.4` into weights by block name; `known` are the model's own names."""
    known = tuple(known)
    weights: dict[str, float] = {}
    for entry in _entries(text):
        name, equals, number = (part.strip() for part in entry.partition("="))
        if name not in known:
            raise ValueError(f"There is no block called '{name}' in this model. Its blocks are: {', '.join(known)}.")
        weights[name] = _number(number, f"the weight of '{name}'") if equals else 1.0
    if not weights:
        raise ValueError(f"No block is named. Write for example: {known[0]}=1.0. The blocks are: {', '.join(known)}.")
    return weights


def parse_keyframes(text: str) -> Keyframes:
    """Reads `0:1.0, 0.5:0.3, 1:0` into a curve: place in the window, then weight."""
    frames: dict[float, float] = {}
    for entry in _entries(text):
        place, colon, weight = (part.strip() for part in entry.partition(":"))
        if not colon:
            raise ValueError(f"'{entry}' is not a point of a curve. Write place:weight, for example 0:1, 0.5:0.3, 1:0.")
        frames[_number(place, "the place")] = _number(weight, "the weight")
    if not frames:
        raise ValueError("The curve has no points. Write place:weight pairs, for example 0:1, 0.5:0.3, 1:0.")
    if min(frames) < 0 or max(frames) > 1:
        raise ValueError("The places of a curve's points must lie between 0 (the window's start) and 1 (its end).")
    return tuple(sorted(frames.items()))


def _entries(text: str) -> list[str]:
    return [entry.strip() for entry in text.replace("\n", ",").split(",") if entry.strip()]


def _number(text: str, what: str) -> float:
    try:
        number = finite(float(text), what)
    except ValueError:
        raise ValueError(f"'{text}' is not a number ({what}). Write for example 0.5.") from None
    if abs(number) > LARGEST:
        raise ValueError(f"'{text}' is too large a number to make a picture with ({what}). Write for example 0.5.")
    return number


def read_weights(text: str) -> list[float]:
    """Reads `1.0, 0.5` into weights."""
    try:
        return [finite(float(entry), "A weight") for entry in text.replace(",", " ").split()]
    except ValueError:
        raise ValueError(f"'{text}' is not a list of weights. Write one number a picture, e.g. 1.0, 0.5.") from None


def read_captions(values: Sequence[str | float]) -> list[str]:
    """Captions or labels: the lines of one text, or each item of a list of texts and numbers."""
    if len(values) == 1 and isinstance(values[0], str):
        return [line.strip() for line in values[0].splitlines() if line.strip()]
    return [f"{value:.10g}" if isinstance(value, float) else str(value).strip() for value in values]


def read_numbers(text: str) -> list[int]:
    """Reads `0, 3, 5` into numbers of pictures, each once, in the order written."""
    entries = text.replace(",", " ").replace("，", " ").replace("、", " ").split()
    wrong = next((entry for entry in entries if not entry.isdecimal()), None)
    if wrong is not None:
        raise ValueError(f"'{wrong}' is not the number of a picture. Write the numbers on the sheet, e.g. 0, 3, 5.")
    return list(dict.fromkeys(map(int, entries)))


def listed_weights(weight: Any, each: bool) -> tuple[float, ...]:
    """A weight, or all of a list of weights that another node gives; the first alone unless `each` is wanted."""
    given = list(weight) if isinstance(weight, (list, tuple)) else [weight]
    if not given:
        raise ValueError("The list of weights is empty. Give it one weight for each image, or enter a number.")
    try:
        weights = tuple(finite(float(entry), "A weight") for entry in given)
    except TypeError:
        raise ValueError(f"The weight is {weight!r}, which is neither a number nor a list of them.") from None
    return weights if each else weights[:1]
