"""Families of models as data: their blocks, presets and names."""

from .demo import DEMO_SD15, DEMO_SDXL
from .family import PRESETS, ModelFamily, adapter_numbers, family_of
from .sd15 import SD15
from .sdxl import SDXL

FAMILIES: tuple[ModelFamily, ...] = (DEMO_SD15, DEMO_SDXL, SD15, SDXL)

__all__ = [
    "DEMO_SD15",
    "DEMO_SDXL",
    "FAMILIES",
    "PRESETS",
    "SD15",
    "SDXL",
    "ModelFamily",
    "adapter_numbers",
    "family_of",
]
