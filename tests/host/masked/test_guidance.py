"""Style adapters and StyleDrop's guidance on a masked transformer: logits are mixed as predictions are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import comfy.samplers
import comfy.sd
import pytest
import torch
from torch import Tensor

from semblance.attention.adapters.style_adapter import FORMS, AdapterForm, StyleAdapter
from semblance.attention.engine.scope import Scope
from semblance.host.masked.sampler import MaskSchedule, masked_sampler
from semblance.host.styledrop.applying import apply_adapter
from semblance.host.styledrop.guider import Scales, styledrop_guider
from semblance.host.styledrop.lora import lora_file
from semblance.tests.support.amused import CODEBOOK
from semblance.tests.support.amused_runs import NEGATIVE, POSITIVE
from semblance.tests.support.studio import relative_error
from semblance.tests.support.style_adapters import style_adapter

from .conftest import Pair

SCHEDULE = MaskSchedule(4, (2.0, 0.0))
CFG = 5.0
each_form = pytest.mark.parametrize("form", FORMS)


def everywhere(known: Any) -> Scope:
    return Scope(known.family.preset("all"))


def adapter_of(model: Any, form: AdapterForm, size: float) -> StyleAdapter:
    """A random adapter at the layers that patches reach, without those of the blocks around them."""
    made = style_adapter(model, form, size=size)
    return replace(made, tensors={name: tensor for name, tensor in made.tensors.items() if "_block." not in name})


def run(guider: Any) -> tuple[Tensor, Tensor]:
    """The logits of the first step, and the tokens at the end."""
    first: list[Tensor] = []
    predict = guider.predict_noise

    def noting(*given: Any, **named: Any) -> Tensor:
        first.append(predict(*given, **named))
        return first[-1]

    guider.predict_noise = noting
    latent = torch.zeros(2, CODEBOOK, 6, 4)
    made = guider.sample(latent, latent, masked_sampler(SCHEDULE), SCHEDULE.sigmas(), disable_pbar=True, seed=1)
    return first[0], made


def cfg(model: Any, scale: float) -> tuple[Tensor, Tensor]:
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(POSITIVE.conditioning, NEGATIVE.conditioning)
    guider.set_cfg(scale)
    return run(guider)


def guided(model: Any, adapter: StyleAdapter, scales: Scales) -> tuple[Tensor, Tensor]:
    texts = POSITIVE.conditioning, NEGATIVE.conditioning
    return run(styledrop_guider(model, adapter, 1.0, everywhere, scales, *texts))


@each_form
def test_a_fresh_adapter_paints_the_tokens_of_cfg(pair: Pair, form: AdapterForm) -> None:
    model = pair[1].model
    logits, tokens = guided(model, adapter_of(model, form, 0.0), Scales(2.0, CFG - 1))
    expected_logits, expected = cfg(model, CFG)
    assert relative_error(logits, expected_logits) < 1e-5 and torch.equal(tokens, expected)


@each_form
def test_a_tuned_one_is_stronger_with_a_higher_scale(pair: Pair, form: AdapterForm) -> None:
    model = pair[1].model
    adapter, (plain, _) = adapter_of(model, form, 0.3), cfg(model, CFG)
    pulls = [relative_error(guided(model, adapter, Scales(style, CFG - 1))[0], plain) for style in (0.0, 1.0, 2.0)]
    assert 1e-3 < pulls[0] < pulls[1] < pulls[2]


@each_form
def test_the_first_step_without_scales_is_the_tuned_model_as_in_the_port(pair: Pair, form: AdapterForm) -> None:
    model = pair[1].model
    adapter = adapter_of(model, form, 0.3)
    logits, _ = guided(model, adapter, Scales(2.0, CFG - 1, first_step=False))
    assert torch.equal(logits, cfg(apply_adapter(model, adapter, 1.0, everywhere), 1.0)[0])


def test_its_lora_is_loaded_whole_by_the_host(pair: Pair) -> None:
    model = pair[1].model
    adapter = adapter_of(model, "lora", 0.3)
    loaded, _ = comfy.sd.load_lora_for_models(model, None, lora_file(adapter), 1.0, 0.0)
    assert len(loaded.patches) == len(adapter.modules)
    assert relative_error(cfg(loaded, 1.0)[0], cfg(apply_adapter(model, adapter, 1.0, everywhere), 1.0)[0]) < 1e-5
