"""Frames of an animation that share a picture share its keys too."""

from __future__ import annotations

import pytest
import torch

from semblance.host.binding.model import patches_on
from semblance.host.instantstyle.adapter import LoadedAdapter, manage_adapter
from semblance.host.ip_adapter.applying import Listening, apply_pictures
from semblance.host.ip_adapter.encoding import EncodedPictures
from semblance.tests.tiny_models import adapter_state_dict, make_unet

FRAMES = 24


def test_a_picture_that_many_frames_show_is_projected_once(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter, asked = manage_adapter("tiny", adapter_state_dict("sd15", "base")), []
    project = LoadedAdapter.keys_values
    monkeypatch.setattr(
        LoadedAdapter, "keys_values", lambda self, *given: asked.append(given[0]) or project(self, *given)
    )
    first, second = torch.randn(2, 1, adapter.layout.clip_width)
    pictures = tuple((first if frame < 10 else second).clone() for frame in range(FRAMES))
    encoded = EncodedPictures(pictures, (torch.zeros(1, adapter.layout.clip_width),))
    model = apply_pictures(make_unet("sd15"), adapter, encoded, Listening(kind="style transfer", per_image=True))
    (patch,) = patches_on(model)
    assert len(asked) == 2 * len(patch.image_keys)
    for keys in patch.image_keys.values():
        assert len(keys) == FRAMES and len({id(key) for key, _ in keys}) == 2
        assert keys[0] is keys[9] and keys[10] is keys[23] and keys[9] is not keys[10]
