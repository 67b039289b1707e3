"""Every node of the host with a MODEL in and out: a method acts before and after it, or refuses and names it."""

from __future__ import annotations

from typing import Any

import folder_paths
import pytest
import torch
from torch import Tensor

from semblance.tests.support.stock_nodes import applied, missing_input, model_nodes
from semblance.tests.support.studio import Studio, relative_error

pytestmark = pytest.mark.slow

SIZE = (8, 8)
COMPILED = {"TorchCompileModel"}
"""Has tests of its own: its backends need a C compiler or a GPU."""


def sockets(studio: Studio, model: Any) -> dict[str, Any]:
    return {"MODEL": model, "CONDITIONING": studio.text(3), "LATENT": {"samples": torch.zeros(2, 4, *SIZE)}}


def test_the_nodes_that_cannot_be_tried_are_known(sd15: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_paths, "get_filename_list", lambda name: [])  # other tests leave files there
    given = sockets(sd15, sd15.model)
    missing = {name: missing_input(node, given) for name, node in model_nodes().items()}
    assert {name: kind for name, kind in missing.items() if kind} == UNTRIED
    assert len(missing) > 80


@pytest.fixture(scope="module")
def plain(sd15: Studio) -> dict[str, Tensor | str]:
    """By node, what the model samples with it and without us, or the error that it raises on SD 1.5."""
    made: dict[str, Tensor | str] = {}
    for name, node in model_nodes().items():
        if (
            name not in UNTRIED.keys() | COMPILED and "model_merging" not in node.__module__
        ):  # those change weights alone
            made[name] = sampled(sd15, lambda node=node: applied(node, sockets(sd15, sd15.model)))
    return made


def sampled(studio: Studio, make: Any) -> Tensor | str:
    try:
        made = studio.sample(make(), size=SIZE)
        return made if made.isfinite().all() else "not finite"
    except Exception as error:  # of whatever kind a node raises for a model it was not made for
        return f"{type(error).__name__}: {error}"


def test_the_nodes_that_fail_on_sd15_without_us_are_known(plain: dict[str, Tensor | str]) -> None:
    assert {name for name, made in plain.items() if isinstance(made, str)} == FAILING


@pytest.mark.parametrize("method", ["instantstyle", "ip-adapter per image", "styleid", "consistory"])
def test_a_method_acts_before_and_after_every_node_or_names_it(
    sd15: Studio, plain: dict[str, Tensor | str], method: str
) -> None:
    faults: dict[str, Any] = {}
    for name, alone in plain.items():
        node = model_nodes()[name]
        if isinstance(alone, str):
            continue
        before = sampled(sd15, lambda node=node: applied(node, sockets(sd15, sd15.with_patch(method, size=SIZE))))
        after = sampled(
            sd15,
            lambda node=node: sd15.with_patch(method, applied(node, sockets(sd15, sd15.model)), size=SIZE),
        )
        if isinstance(before, Tensor) and isinstance(after, Tensor):
            if not relative_error(before, alone) > 1e-4 or not relative_error(after, before) < 1e-4:
                faults[name] = relative_error(before, alone), relative_error(after, before)
        elif before != after or not _names(before, name, node):
            faults[name] = before, after
    assert faults == {}


def _names(refusal: Tensor | str, name: str, node: Any) -> bool:
    """Whether a refusal is a sentence with the node's name in it, or that of the module that it comes from."""
    assert isinstance(refusal, str)
    known = (name, node.__module__.rpartition("/")[2], *SAID.get(name, ()))
    return refusal.startswith(("ValueError: ", "OffLadder: ")) and any(word in refusal for word in known)


OTHER_LEVELS = ("The sampler asks for noise level",)
SAID = {
    "TomePatchModel": ("ToMe",),
    "ModelSamplingAuraFlow": OTHER_LEVELS,
    "ModelSamplingContinuousEDM": OTHER_LEVELS,
    "ModelSamplingContinuousV": OTHER_LEVELS,
    "ModelSamplingSD3": OTHER_LEVELS,
    "ModelSamplingStableCascade": OTHER_LEVELS,
}
"""By what words a refusal tells of a node whose title is another."""
FAILING = {
    "FluxKVCache",
    "FreeU_V2",  # at this size, where its mean is that of one token
    "HiDreamO1PatchSeamSmoothing",
    "ModelNoiseScale",
    "RenormCFG",
    "SelfAttentionGuidance",  # at this size; with guests it is tried at another
    "TemporalScoreRescaling",
}
UNTRIED = {
    "ARVideoI2V": "VAE",
    "AnimaLLLiteApply": "MODEL_PATCH",
    "HypernetworkLoader": "a file",
    "LTXVReferenceAudio": "AUDIO",
    "LatentApplyOperationCFG": "LATENT_OPERATION",
    "LoraLoader": "CLIP",
    "LoraLoaderBypass": "CLIP",
    "LoraLoaderBypassModelOnly": "a file",
    "LoraLoaderModelOnly": "a file",
    "LoraModelLoader": "LORA_MODEL",
    "QwenImageDiffsynthControlnet": "MODEL_PATCH",
    "SUPIRApply": "MODEL_PATCH",
    "TripoSplatSamplingPreview": "VAE",
    "USOStyleReference": "MODEL_PATCH",
    "WanInfiniteTalkToVideo": "MODEL_PATCH",
    "WanUni3CControlnetApply": "MODEL_PATCH",
    "ZImageFunControlnet": "MODEL_PATCH",
}
"""Nodes with an input that neither a default nor the tests fill, and its type."""
