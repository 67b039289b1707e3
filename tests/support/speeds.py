"""Which of a test's values are tried at every change, and which by `nox -s laws` alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

import pytest

FAMILIES = ("sd15", "sdxl")
"""UNets."""
TRANSFORMER_NAMES = (
    "flux",
    "flux2",
    "chroma",
    "qwen_image",
    "krea2",
    "z_image",
    "lumina2",
    "anima",
    "cosmos2",
    "wan",
    "sd35",
)
FLOW_NAMES = tuple(name for name in TRANSFORMER_NAMES if name != "cosmos2")
"""Those that are sampled as a rectified flow."""


def slow_but(values: Iterable[Any], quick: Collection[Any] | Callable[[Any], bool]) -> list[Any]:
    """The values as parameters, slow but for the quick ones; several of a kind may be tuples."""
    is_quick = quick if callable(quick) else lambda value: value in quick
    return [value if is_quick(value) else slow(value) for value in values]


def slow(*values: Any) -> Any:
    """One parameter, or a row of several in a tuple, that only `nox -s laws` tries."""
    row = values[0] if len(values) == 1 and isinstance(values[0], tuple) else values
    return pytest.param(*row, marks=pytest.mark.slow)


def one_family(name: str = "kind") -> Any:
    """A parameter of both families: SD 1.5 at every change, and SDXL, which takes twice as long, by `nox -s laws`."""
    return pytest.mark.parametrize(name, slow_but(FAMILIES, ("sd15",)))
