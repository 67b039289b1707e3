"""Calls of a UNet of real size with Apply IP-Adapter on it, weightless."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from semblance.attention.families import adapter_numbers
from semblance.host.binding.model import ModelMap, map_model
from semblance.host.ip_adapter.applying import Listening, apply_pictures
from semblance.host.ip_adapter.encoding import EncodedPictures

from .models import TEXT_WIDTH
from .sizes import STEPS, AnyAdapter, Calls, weightless
from .weightless import Meter, Size, metered

APPLICATIONS: Mapping[str, tuple[Listening, int]] = {
    "linear": (Listening(), 1),
    "style transfer precise": (Listening(kind="style transfer precise"), 1),
    "linear, K+mean(V) w/ C penalty": (Listening(scaling="K+mean(V) w/ C penalty"), 1),
    "linear, a picture for each image": (Listening(weights=(1.0, 0.8), per_image=True), 4),
    "linear, four regions": (Listening(), 1),
}
"""How each call listens, and to how many pictures."""
REGIONS = {"linear, four regions": 4}


class TokensOfAPicture(AnyAdapter):
    """As many tokens as a plus adapter gives, for a picture of any contents."""

    name = "any"

    def __init__(self, kind: str, model_map: ModelMap) -> None:
        self._numbers = adapter_numbers(model_map.sites)
        self._text_width = TEXT_WIDTH[kind]
        super().__init__({number: model_map.widths[site] for site, number in self._numbers.items()})

    def numbers_for(self, _: ModelMap) -> Any:
        return self._numbers

    def tokens_of(self, picture: Tensor) -> Tensor:
        return picture.new_zeros(16, self._text_width)


def application(calls: Calls, name: str) -> Size:
    """The second call of a run, after image keys, values and masks were brought to the GPU."""
    listening, pictures = APPLICATIONS[name]
    model = weightless(calls.kind)
    adapter: Any = TokensOfAPicture(calls.kind, map_model(model))
    encoded = EncodedPictures((torch.zeros(1, 257, 1280),) * pictures, (torch.zeros(1, 257, 1280),))
    mask = torch.ones(1, calls.pixels, calls.pixels) if name in REGIONS else None
    for _ in range(REGIONS.get(name, 1)):
        model = apply_pictures(model, adapter, encoded, listening, mask)
    run = calls.run()
    with metered(Meter()) as meter:
        calls.call(model, run, meter, STEPS // 2)
        return calls.call(model, run, meter, STEPS // 2)
