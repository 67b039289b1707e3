"""The small models that come with the pack: the blocks of SDXL and SD 1.5, distinguished by the width of their text."""

from dataclasses import replace

from .family import LAYOUT, STYLE, BlockChoice
from .sd15 import SD15
from .sdxl import SDXL

_SOURCE = "measured on the demo models by `python -m demo.probe`, each block alone."
_FINE = ("input.1", "input.2", "output.8", "output.9", "output.10", "output.11")

DEMO_SDXL = replace(
    SDXL,
    name="Semblance demo (SDXL)",
    text_width=128,
    choices={
        **SDXL.choices,
        STYLE: BlockChoice(("output.5",), _SOURCE),
        LAYOUT: BlockChoice(("output.4",), _SOURCE),
    },
)
"""output.5 transfers nearly all of the colours, output.4 the position of the figure."""
DEMO_SD15 = replace(
    SD15,
    name="Semblance demo (SD 1.5)",
    text_width=64,
    choices={**SD15.choices, STYLE: BlockChoice(_FINE, _SOURCE)},
)
"""output.8, which hands over to the full resolution, transfers most of the style, and the blocks there some more."""
