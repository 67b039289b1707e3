"""Workflows made for ComfyUI_IPAdapter_plus are posted as they are to a server that has Semblance alone."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
from PIL import Image

from semblance.harness.server import ComfyUIServer, Prompt, PromptFailed
from semblance.host.replacement.table import REPLACEMENTS
from semblance.nodes.replacements import for_frontend
from semblance.tests.support.old_models import stock
from semblance.tests.support.old_workflows import NAMES, SIDE, posted, small, without_meta

FRAMES = {"weights_strategy": 2 * 4 + 1}
"""How many pictures a workflow saves, where there is more than one: two pictures for four frames each, and one more."""


@pytest.fixture(scope="module")
def stocked(comfyui: ComfyUIServer) -> ComfyUIServer:
    return stock(comfyui)


def pictures_of(server: ComfyUIServer, prompt: Prompt) -> Any:
    """All pictures a prompt saves; (pictures, height, width, 3)."""
    saved = server.outputs(server.run(prompt))
    return numpy.stack([numpy.asarray(Image.open(path).convert("RGB")).astype(int) for path in saved])


def changed(prompt: Prompt, kind: str, /, *without: str, **inputs: Any) -> Prompt:
    """The prompt with inputs of one type of node changed, or taken away."""
    return {
        number: {
            **node,
            "inputs": {key: value for key, value in {**node["inputs"], **inputs}.items() if key not in without},
        }
        if node["class_type"] == kind
        else node
        for number, node in prompt.items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_the_workflow_makes_its_pictures_with_titles_and_without(stocked: ComfyUIServer, name: str) -> None:
    prompt = small(posted(name))
    found = pictures_of(stocked, prompt)
    assert found.shape == (FRAMES.get(name, 1), SIDE, SIDE, 3)
    assert found.std() > 0
    assert numpy.array_equal(pictures_of(stocked, without_meta(prompt)), found)


def test_the_picture_acts_and_a_simple_node_is_an_advanced_one_with_its_settings(stocked: ComfyUIServer) -> None:
    prompt = small(posted("one_image_unified"))
    found = pictures_of(stocked, prompt)
    assert not numpy.array_equal(pictures_of(stocked, changed(prompt, "IPAdapter", weight=0.0)), found)
    as_advanced = {"weight_type": "ease out", "combine_embeds": "concat", "embeds_scaling": "V only"}
    node = {"class_type": "IPAdapterAdvanced", "inputs": {**prompt["7"]["inputs"], **as_advanced}}
    assert numpy.array_equal(pictures_of(stocked, {**prompt, "7": node}), found)


@pytest.mark.parametrize(
    ("name", "kind", "without", "inputs", "sentence"),
    [
        ("style_transfer", "IPAdapterAdvanced", ["embeds_scaling"], {}, "Required input is missing: embeds_scaling"),
        ("style_transfer", "IPAdapterAdvanced", [], {"weight_type": "original"}, "Value not in list"),
        ("style_transfer", "IPAdapterAdvanced", [], {"image": ["no such node", 0]}, "no such node"),
        ("style_and_composition", "IPAdapterStyleComposition", ["image_composition"], {}, "image_composition"),
        ("one_image_unified", "IPAdapterUnifiedLoader", [], {"preset": "FACEID"}, "Value not in list"),
    ],
)
def test_what_the_old_node_would_have_refused_is_refused_by_comfyui(
    stocked: ComfyUIServer, name: str, kind: str, without: list[str], inputs: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(PromptFailed, match=sentence):
        stocked.queue(changed(posted(name), kind, *without, **inputs))


def test_a_node_that_is_not_replaced_is_named(stocked: ComfyUIServer) -> None:
    prompt = posted("style_transfer")
    prompt["7"]["class_type"] = "IPAdapterFaceID"
    prompt["7"]["_meta"]["title"] = "IPAdapter FaceID"
    with pytest.raises(PromptFailed, match="'IPAdapter FaceID' not found. The custom node may not be installed."):
        stocked.queue(prompt)


def test_the_frontend_is_offered_every_replacement(comfyui: ComfyUIServer) -> None:
    offered = comfyui.get("/node_replacements")
    for old_id, entry in REPLACEMENTS.items():
        assert offered[old_id] == [for_frontend(old_id, entry).as_dict()]
