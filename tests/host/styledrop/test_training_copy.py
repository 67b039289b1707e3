"""The copy that is tuned on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from comfy.model_patcher import ModelPatcher

from semblance.host.styledrop.training_copy import deep_copy


def test_the_copy_has_modules_of_its_own_and_all_its_weights_where_dynamic_vram_would_hand_them_out(
    model_of: Callable[..., ModelPatcher], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, asked = model_of().clone(), []
    clone = model.clone

    def told(**settings: Any) -> ModelPatcher:
        asked.append(settings)
        return clone(**settings)

    monkeypatch.setattr(model, "clone", told)
    copy = deep_copy(model)
    assert asked == [{"disable_dynamic": True, "force_deepcopy": True}]
    assert type(copy) is ModelPatcher and copy.model is not model.model
