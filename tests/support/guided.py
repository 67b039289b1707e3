"""What tests of StyleDrop Guider share: noise levels, the CFG beside it, and what ComfyUI's own guider makes."""

from __future__ import annotations

import pytest
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from semblance.tests.support.studio import Studio, guider_of, run_guider

each_form = pytest.mark.parametrize("form", ["bottleneck", "lora"])
SIGMAS = torch.tensor([6.0, 2.0, 0.5, 0.0])
ONE_STEP = torch.tensor([2.0, 0.0])
"""Of Euler: it gives the prediction itself."""
CFG = 5.0


def plain(studio: Studio, model: ModelPatcher | None = None, cfg: float = CFG) -> Tensor:
    return run_guider(guider_of(studio, model or studio.model, cfg), SIGMAS)
