"""Tiny models to tune on, and pictures of noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import comfy.model_sampling
import pytest
import torch
from comfy.model_patcher import ModelPatcher

from semblance.attention.families import FAMILIES
from semblance.host.binding.model import map_model
from semblance.host.styledrop.examples import Example, Examples
from semblance.host.styledrop.recipe import TuningRecipe
from semblance.tests.tiny_models import Family, make_conditioning, make_unet

Prediction = str
"""eps, v or flow."""


class Flow(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
    """How the host samples SD 3 and its like."""


@pytest.fixture(scope="session")
def model_of() -> Callable[..., ModelPatcher]:
    models: dict[Any, ModelPatcher] = {}

    def model(kind: Family = "sd15", prediction: Prediction = "eps", dtype: torch.dtype = torch.float32) -> Any:
        key = (kind, prediction, dtype)
        if key not in models:
            models[key] = make_unet(kind, dtype=dtype, v_prediction=prediction == "v")
            if prediction == "flow":
                models[key].add_object_patch("model_sampling", Flow())
        return models[key]

    return model


def examples(
    kind: Family = "sd15", count: int = 1, sizes: Sequence[tuple[int, int]] = ((8, 8),), tokens: Sequence[int] = (77,)
) -> Examples:
    """Latents of noise, of these sizes and lengths of text in turn, with mirror images."""
    each: list[Example] = []
    for number in range(count):
        height, width = sizes[number % len(sizes)]
        latent = 4.0 * torch.randn(4, height, width, generator=torch.Generator().manual_seed(number))
        text = make_conditioning(kind, tokens=tokens[number % len(tokens)], seed=number)
        each.append(Example(latent, text, latent.flip(-1)))
    return Examples(tuple(each), "a fox", "in pencil")


def recipe(model: ModelPatcher, **settings: Any) -> TuningRecipe:
    """A short tuning of two or three blocks with attention; in all of them with `blocks="all"`."""
    family = map_model(model).family
    assert family in FAMILIES
    blocks = settings.pop("blocks", (family.blocks[0], family.blocks[-1]))
    defaults = {"width": 4, "steps": 3, "learning_rate": 1e-2, "gradient_checkpointing": False}
    return TuningRecipe(family.blocks if blocks == "all" else blocks, **defaults | settings)
