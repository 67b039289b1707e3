"""What the pack hangs on a MODEL lies where other nodes neither walk nor copy it away."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from semblance.host.binding.describe import describe
from semblance.host.binding.model import patches_on
from semblance.tests.support.speeds import slow_but
from semblance.tests.support.studio import PATCHES, Studio, relative_error, wrap

QUICK = ("remembers", "brings guests", "instantstyle", "consistory")
every_patch = pytest.mark.parametrize("name", slow_but(PATCHES, lambda name: name in QUICK))


def crop_in(options: dict[str, Any]) -> list[str]:
    """What an upscaler does that crops other packs' patches: it takes every entry for a function."""
    slots = [*options.get("patches", {}).values(), *(d.values() for d in options.get("patches_replace", {}).values())]
    return [patch.__name__ for patches in slots for patch in patches]


@every_patch
def test_nodes_that_walk_all_patches_find_functions_alone(sd15: Studio, name: str) -> None:
    found: list[list[str]] = []

    def walk(executor: Callable[..., Any], model: Any, conds: Any, x: Tensor, timestep: Tensor, options: Any) -> Any:
        found.append(crop_in(options["transformer_options"]))
        return executor(model, conds, x, timestep, options)

    model = sd15.with_patch(name).clone()
    assert crop_in(model.model_options["transformer_options"]) == []
    model.set_model_attn1_patch(lambda hidden, context, value, extra: (hidden, context, value))
    assert torch.equal(sd15.sample(wrap(model, WrappersMP.CALC_COND_BATCH, walk)), sd15.patched(name))
    assert found and all(names == ["<lambda>"] for names in found)


@pytest.mark.parametrize("kind", [WrappersMP.CALC_COND_BATCH, WrappersMP.APPLY_MODEL, WrappersMP.DIFFUSION_MODEL])
@every_patch
def test_nodes_that_copy_the_options_deeply_change_nothing(sd15: Studio, name: str, kind: str) -> None:
    copied: list[int] = []

    def copying(executor: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        def deep(part: Any) -> Any:
            if not isinstance(part, dict) or not {"transformer_options", "cond_or_uncond"} & set(part):
                return part
            copied.append(1)
            return copy.deepcopy(part)

        return executor(*map(deep, arguments), **named)

    for model in (wrap(sd15.with_patch(name), kind, copying), sd15.with_patch(name, wrap(sd15.model, kind, copying))):
        made, expected = sd15.sample(model), sd15.patched(name)
        # Beside another pack's function around the UNet, references go through it by themselves.
        apart = kind == "diffusion_model" and name.startswith("reference style")
        assert relative_error(made, expected) < 1e-5 if apart else torch.equal(made, expected)
    assert copied


def test_a_copy_of_a_models_options_carries_the_same_patches(sd15: Studio) -> None:
    model = sd15.with_patch("instantstyle", sd15.with_patch("edits output"))
    copied = model.clone()
    copied.model_options = copy.deepcopy(model.model_options)
    assert patches_on(copied) == patches_on(model) and len(patches_on(copied)) == 2
    assert describe(copied) == describe(model)
