"""The small models that come with the pack: blocks of SDXL and SD 1.5, told from those by the width of their text."""

from dataclasses import replace

from .sd15 import SD15
from .sdxl import SDXL

_SOURCE = "measured on the demo models by `python -m demo.probe`, each block alone."
_FINE = ("input.1", "input.2", "output.9", "output.10", "output.11")

DEMO_SDXL = replace(
    SDXL,
    name="Semblance demo (SDXL)",
    text_width=128,
    style=("output.4",),
    layout=("output.5",),
    source=_SOURCE,
)
"""One block brings nearly all of the colours, and the next the place of the figure."""
DEMO_SD15 = replace(SD15, name="Semblance demo (SD 1.5)", text_width=64, style=_FINE, source=_SOURCE)
"""Its style is in the blocks of full resolution: together they gain what all blocks gain."""
