"""A compiled model is called uncompiled while it carries a patch of ours.

A compiled call is a recording. What a patch reads anew at each call, such as the noise level, would be kept as it was
at the first; and since Torch Compile drops the guards on `transformer_options`, the recording of a plain model would
answer for a patched one, and the other way round. So nothing of ours is ever traced, nor lies in memory that the next
replay of a captured graph overwrites. The result is the uncompiled model's, to the bit; the compiler's gain is lost.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import torch


class _Stance:
    """The compiler's stance, which is one for the whole process: the last call that needs it eager gives it back."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._calls = 0
        self._held: Any = None

    def take(self) -> None:
        with self._lock:
            if not self._calls:
                self._held = torch.compiler.set_stance("force_eager")
            self._calls += 1

    def give_back(self) -> None:
        with self._lock:
            self._calls -= 1
            if not self._calls:
                self._held.__exit__(None, None, None)


_STANCE = _Stance()


@contextmanager
def uncompiled() -> Iterator[None]:
    """Whatever is compiled runs as it was written until the block ends, whichever way and in whichever place."""
    # The compiler is slow to import, and where nobody has imported it nothing is compiled.
    if "torch._dynamo" not in sys.modules or not hasattr(torch.compiler, "set_stance"):  # before PyTorch 2.6
        yield
        return
    _STANCE.take()
    try:
        yield
    finally:
        _STANCE.give_back()
