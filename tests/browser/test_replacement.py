"""Workflows made for ComfyUI_IPAdapter_plus, opened in the real frontend where only Semblance is installed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from semblance.harness.server import ComfyUIServer, Prompt
from semblance.host.replacement.prompts import replaced
from semblance.host.replacement.table import REPLACEMENTS
from semblance.tests.browser.frontend import Frontend
from semblance.tests.support.old_models import stock
from semblance.tests.support.old_workflows import NAMES, posted, saved, small, small_saved, without_meta

OURS = {entry.node for entry in REPLACEMENTS.values()}


@pytest.fixture(scope="module")
def stocked(comfyui: ComfyUIServer) -> ComfyUIServer:
    return stock(comfyui)


@pytest.fixture(scope="module")
def people_s(stocked: ComfyUIServer, frontend: Frontend) -> Iterator[Frontend]:
    """The frontend as a person has it opens it, with its panel of errors."""
    frontend.refresh()
    with frontend.showing_errors():
        yield frontend


def pixels(path: Path) -> tuple[tuple[int, int], bytes]:
    with Image.open(path) as picture:
        return picture.size, picture.tobytes()


def with_defaults(prompt: Prompt, info: dict[str, Any]) -> Prompt:
    """The prompt with the defaults of optional widgets, which the frontend always sends."""
    return {
        number: {**node, "inputs": {**defaults(info[node["class_type"]]), **node["inputs"]}}
        for number, node in prompt.items()
    }


def defaults(info: dict[str, Any]) -> dict[str, Any]:
    optional = info["input"].get("optional", {})
    return {name: about[1]["default"] for name, about in optional.items() if len(about) > 1 and "default" in about[1]}


@pytest.mark.parametrize("name", NAMES)
def test_replace_all_leaves_no_red_node_and_the_run_makes_the_picture_of_the_api(
    stocked: ComfyUIServer, people_s: Frontend, name: str
) -> None:
    people_s.load(small_saved(saved(name)))
    people_s.replace_missing_nodes()
    assert people_s.faults() == []
    as_posted = replaced({"prompt": small(posted(name))}, OURS)["prompt"]
    made = without_meta(people_s.api_prompt())
    assert made == without_meta(with_defaults(as_posted, stocked.object_info()))
    pictures, expected = (
        stocked.outputs(done) for done in (people_s.press_run(stocked), stocked.run(small(posted(name))))
    )
    assert [pixels(path) for path in pictures] == [pixels(path) for path in expected] != []


def test_a_run_without_replacing_makes_the_same_picture(stocked: ComfyUIServer, people_s: Frontend) -> None:
    """The frontend sends such nodes without a class, and their widgets without names."""
    (expected,) = stocked.outputs(stocked.run(small(posted("one_image_unified"))))
    people_s.load(small_saved(saved("one_image_unified")))
    (picture,) = stocked.outputs(people_s.press_run(stocked))
    assert pixels(picture) == pixels(expected)


@pytest.mark.parametrize("replace", [True, False], ids=["replaced", "as they are"])
def test_old_nodes_in_a_subgraph_make_the_same_picture(
    stocked: ComfyUIServer, people_s: Frontend, replace: bool
) -> None:
    (expected,) = stocked.outputs(stocked.run(small(posted("one_image_unified"))))
    people_s.load(small_saved(saved("one_image_unified")))
    people_s.put_into_subgraph("PrepImageForClipVision", "IPAdapter")
    if replace:
        people_s.replace_missing_nodes()
        assert people_s.faults() == []
    assert sum(":" in number for number in people_s.api_prompt()) == 2
    (picture,) = stocked.outputs(people_s.press_run(stocked))
    assert pixels(picture) == pixels(expected)
