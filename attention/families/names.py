"""The names of families, by the width of the text that their cross-attention reads."""

from __future__ import annotations

from collections.abc import Mapping

FAMILY_OF_TEXT_WIDTH: Mapping[int, str] = {
    64: "Semblance demo (SD 1.5)",
    128: "Semblance demo (SDXL)",
    768: "SD 1.5",
    1024: "SD 2.x",
    2048: "SDXL",
}
