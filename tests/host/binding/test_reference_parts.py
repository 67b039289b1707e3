"""Reference Style on Flux under nodes that show the model a part of the run at a time: windows, areas, devices."""

from __future__ import annotations

import comfy.model_management
import comfy.multigpu
import pytest
import torch

import nodes
from semblance.tests.support.reference_styles import picture, sampled, styled
from semblance.tests.support.studio import relative_error
from semblance.tests.support.transformers import TRANSFORMERS
from semblance.tests.support.windows import windowed

FLUX = TRANSFORMERS["flux"]
SIZES = pytest.mark.parametrize("size", [(8, 8), (12, 6)], ids=["of the picture's size", "of another size"])


@SIZES
def test_images_seen_in_windows_come_out_as_those_seen_at_once(size: tuple[int, int]) -> None:
    model = styled(FLUX.model(), picture(FLUX, size=size))
    once = sampled(FLUX, model, images=4)
    assert relative_error(sampled(FLUX, windowed(model), images=4), once) < 1e-5
    assert relative_error(once, sampled(FLUX, FLUX.model(), images=4)) > 1e-3


@SIZES
def test_an_area_goes_together_or_apart(size: tuple[int, int], request: pytest.FixtureRequest) -> None:
    (area,) = nodes.ConditioningSetArea().append(FLUX.conditioning(seed=3), 64, 48, 32, 16, 1.0)
    entries = [*FLUX.conditioning(seed=1), *area]
    model = styled(FLUX.model(), picture(FLUX, size=size))
    together = sampled(FLUX, model, (12, 16), positive=entries)
    assert relative_error(together, sampled(FLUX, FLUX.model(), (12, 16), positive=entries)) > 1e-3
    request.getfixturevalue("one_conditioning_a_call")
    assert relative_error(sampled(FLUX, model, (12, 16), positive=entries), together) < 1e-4


@SIZES
def test_a_style_split_over_two_devices_is_the_style_on_one(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One device under two names, which ComfyUI's splitting takes for two."""
    devices = [torch.device("cpu"), torch.device("cpu", 1)]
    monkeypatch.setattr(comfy.model_management, "get_all_torch_devices", lambda exclude_current=False: devices)
    model = styled(FLUX.model(), picture(FLUX, size=size))
    split = comfy.multigpu.create_multigpu_deepclones(model, 2)
    assert len(split.get_additional_models_with_key("multigpu")) == 1
    assert relative_error(sampled(FLUX, split), sampled(FLUX, model)) < 1e-5
