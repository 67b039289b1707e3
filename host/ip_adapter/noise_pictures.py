"""Noisy pictures to steer away from, as ComfyUI_IPAdapter_plus makes them."""

from __future__ import annotations

from typing import Literal, get_args

Noise = Literal["fade", "dissolve", "gaussian", "shuffle"]
NOISES: tuple[Noise, ...] = get_args(Noise)
