"""Pictures cut, resized and sharpened for an image encoder, as ComfyUI_IPAdapter_plus does."""

from __future__ import annotations

from typing import Literal, get_args

Filter = Literal["LANCZOS", "BICUBIC", "HAMMING", "BILINEAR", "BOX", "NEAREST"]
FILTERS: tuple[Filter, ...] = get_args(Filter)
Place = Literal["top", "bottom", "left", "right", "center", "pad"]
PLACES: tuple[Place, ...] = get_args(Place)
