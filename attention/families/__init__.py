"""Families of models as data: their blocks, presets and names."""

from .family import PRESETS, ModelFamily, adapter_numbers, family_of
from .sd15 import SD15
from .sdxl import SDXL

FAMILIES: tuple[ModelFamily, ...] = (SD15, SDXL)

__all__ = ["FAMILIES", "PRESETS", "SD15", "SDXL", "ModelFamily", "adapter_numbers", "family_of"]
