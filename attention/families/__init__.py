"""Families of models as data: their blocks, the choices of each method among them, and their names."""

from .amused import AMUSED, amused_of
from .demo import DEMO_SD15, DEMO_SDXL
from .family import CONSISTORY, PRESETS, STYLEID, BlockChoice, ModelFamily, adapter_numbers, family_of
from .sd15 import SD15
from .sdxl import SDXL

FAMILIES: tuple[ModelFamily, ...] = (DEMO_SD15, DEMO_SDXL, SD15, SDXL)

__all__ = [
    "AMUSED",
    "CONSISTORY",
    "DEMO_SD15",
    "DEMO_SDXL",
    "FAMILIES",
    "PRESETS",
    "SD15",
    "SDXL",
    "STYLEID",
    "BlockChoice",
    "ModelFamily",
    "adapter_numbers",
    "amused_of",
    "family_of",
]
