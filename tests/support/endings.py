"""How a run may end, and what it leaves in this process."""

from __future__ import annotations

import gc
import os
from typing import Any

import psutil
from comfy.model_management import InterruptProcessingException
from torch import Tensor


class Fault(Exception):
    pass


def raise_fault(*_: Any) -> None:
    raise Fault


def raise_interrupt(*_: Any) -> None:
    raise InterruptProcessingException


def tensors_alive() -> int:
    gc.collect()
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


def resident() -> float:
    """Megabytes of memory this process holds."""
    gc.collect()
    return psutil.Process(os.getpid()).memory_info().rss / 2**20
