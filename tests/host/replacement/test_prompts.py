"""A prompt with old nodes becomes one with ours, whatever it lacks; every other prompt stays what it is."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from copy import deepcopy
from typing import Any

import pytest

from semblance.harness.pinned import ROOT
from semblance.host.replacement import prompts
from semblance.host.replacement.prompts import ABSENT, on_prompt, replaced
from semblance.host.replacement.table import REPLACEMENTS
from semblance.tests.support.old_workflows import NAMES, posted, saved, sent_unreplaced, without_meta

INSTALLED = {entry.node for entry in REPLACEMENTS.values()}
ADVANCED = {
    "model": ["1", 0],
    "ipadapter": ["2", 0],
    "image": ["3", 0],
    "weight": 0.8,
    "weight_type": "style transfer",
    "combine_embeds": "concat",
    "start_at": 0.0,
    "end_at": 1.0,
    "embeds_scaling": "V only",
}
each_workflow = pytest.mark.parametrize("name", NAMES)


def alone(kind: str, inputs: dict[str, Any]) -> dict[str, Any]:
    """What becomes of one node."""
    return replaced({"prompt": {"4": {"class_type": kind, "inputs": inputs}}}, INSTALLED)["prompt"]["4"]


@each_workflow
def test_old_nodes_become_ours_with_their_links_and_values_and_all_else_stays(name: str) -> None:
    given = posted(name)
    request = {"prompt": given, "client_id": "a browser"}
    untouched = deepcopy(request)
    result = replaced(request, INSTALLED)
    assert request == untouched
    assert result["client_id"] == "a browser"
    for number, node in given.items():
        new = result["prompt"][number]
        if node["class_type"] not in REPLACEMENTS:
            assert new is node
            continue
        entry = REPLACEMENTS[node["class_type"]]
        assert new["class_type"] == entry.node
        assert new["_meta"] == node["_meta"]
        taken = {theirs: new["inputs"][ours] for ours, theirs in entry.inputs.items() if ours in new["inputs"]}
        assert taken == {key: value for key, value in node["inputs"].items() if key not in entry.left_out}
        assert entry.values.items() <= new["inputs"].items()


@each_workflow
def test_titles_make_no_difference(name: str) -> None:
    titled = replaced({"prompt": posted(name)}, INSTALLED)["prompt"]
    untitled = replaced({"prompt": without_meta(posted(name))}, INSTALLED)["prompt"]
    assert without_meta(untitled) == without_meta(titled)
    kinds = {number: node["class_type"] for number, node in posted(name).items()}
    assert {number: node.get("_meta") for number, node in untitled.items()} == {
        number: {"title": kind} if kind in REPLACEMENTS else None for number, kind in kinds.items()
    }


@each_workflow
def test_what_the_frontend_sends_of_nodes_it_does_not_know_is_completed_from_the_workflow(name: str) -> None:
    sent = replaced(sent_unreplaced(name, set(REPLACEMENTS)), INSTALLED)
    assert without_meta(sent["prompt"]) == without_meta(replaced({"prompt": posted(name)}, INSTALLED)["prompt"])


def test_the_result_hangs_on_no_hash_seed() -> None:
    """And leaves ComfyUI's own replacement, which does hang on it, nothing to replace."""
    code = (
        f"import json, sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from harness.library import use_library; use_library()\n"
        "from semblance.host.replacement.prompts import replaced\n"
        "from semblance.host.replacement.table import REPLACEMENTS\n"
        "from semblance.tests.support.old_workflows import NAMES, posted\n"
        "ours = {entry.node for entry in REPLACEMENTS.values()}\n"
        "print(json.dumps([replaced({'prompt': posted(name)}, ours) for name in NAMES]))"
    )
    python = [sys.executable, "-c", code]
    environments = [{**os.environ, "PYTHONHASHSEED": str(seed)} for seed in range(3)]
    said = {subprocess.run(python, env=env, capture_output=True, check=True).stdout for env in environments}
    (made,) = said
    kinds = {node["class_type"] for request in json.loads(made) for node in request["prompt"].values()}
    assert not kinds & set(REPLACEMENTS)


def test_installed_nodes_are_left_alone_one_by_one() -> None:
    request = {"prompt": posted("one_image_unified")}
    assert replaced(request, INSTALLED | set(REPLACEMENTS)) is request
    kinds = {number: node["class_type"] for number, node in request["prompt"].items()}
    result = replaced(request, INSTALLED | {"IPAdapter"})["prompt"]
    for number, kind in kinds.items():
        entry = None if kind == "IPAdapter" else REPLACEMENTS.get(kind)
        assert result[number]["class_type"] == (entry.node if entry else kind)


def test_a_node_stays_where_ours_is_not_there() -> None:
    request = {"prompt": posted("one_image_unified")}
    assert replaced(request, set()) is request


def test_missing_optional_links_stay_missing() -> None:
    assert alone("IPAdapterAdvanced", ADVANCED)["inputs"] == ADVANCED


@pytest.mark.parametrize("name", list(ADVANCED))
def test_what_the_old_node_demanded_is_not_made_up(name: str) -> None:
    given = {key: value for key, value in ADVANCED.items() if key != name}
    assert alone("IPAdapterAdvanced", given)["inputs"] == given


def test_an_input_that_only_the_old_node_demanded_is_refused_rather_than_made_up() -> None:
    new = alone("IPAdapterMS", ADVANCED | {"weight_faceidv2": 1.0})
    assert new["inputs"] == ADVANCED | {"layers": ABSENT}


def test_an_input_that_the_old_node_did_not_know_is_left_out_and_named(caplog: pytest.LogCaptureFixture) -> None:
    assert alone("IPAdapterAdvanced", ADVANCED | {"noise": 0.5})["inputs"] == ADVANCED
    assert "IPAdapterAdvanced (node 4) has no input noise." in caplog.text


def placeholder(number: str, inputs: dict[str, Any], workflow: Any) -> dict[str, Any]:
    return {"prompt": {number: {"inputs": inputs}}, "extra_data": {"extra_pnginfo": {"workflow": workflow}}}


def test_a_node_in_a_subgraph_is_found_by_its_path() -> None:
    inner = {"id": 5, "type": "IPAdapterModelLoader", "widgets_values": ["plus.safetensors"]}
    workflow = {
        "nodes": [{"id": 12, "type": "a-b-c"}, {"id": 5, "type": "KSampler"}],
        "definitions": {"subgraphs": [{"id": "a-b-c", "nodes": [inner]}]},
    }
    result = replaced(placeholder("12:5", {}, workflow), INSTALLED)["prompt"]["12:5"]
    assert (result["class_type"], result["inputs"]) == ("SemblanceLoadAdapter", {"file": "plus.safetensors"})


def test_a_widget_that_is_linked_does_not_act_with_its_old_value() -> None:
    socket = {"name": "weight", "link": 7, "widget": {"name": "weight"}}
    node = {"id": 8, "type": "IPAdapterEncoder", "inputs": [socket], "widgets_values": [0.3]}
    for sent in ({}, {"UNKNOWN": 0.3}):
        request = placeholder("8", sent, {"nodes": [node]})
        assert "weight" not in replaced(request, INSTALLED)["prompt"]["8"]["inputs"]
    request = placeholder("8", {"UNKNOWN": 0.3, "weight": ["9", 0]}, {"nodes": [node]})
    assert replaced(request, INSTALLED)["prompt"]["8"]["inputs"] == {"weight": ["9", 0]}


def test_what_a_person_typed_into_a_node_of_no_name_goes_before_what_was_saved() -> None:
    node = {"id": 8, "type": "IPAdapterNoise", "widgets_values": ["fade", 0.5, 3]}
    request = placeholder("8", {"UNKNOWN": "dissolve", "UNKNOWN_1": 0.9, "UNKNOWN_7": "surplus"}, {"nodes": [node]})
    inputs = replaced(request, INSTALLED)["prompt"]["8"]["inputs"]
    assert inputs == {"type": "dissolve", "strength": 0.9, "blur": 3}


@pytest.mark.parametrize(
    "prompt",
    [
        None,
        [],
        {"1": None},
        {"1": []},
        {"1": {}},
        {"1": {"class_type": "IPAdapterAdvanced"}},
        {"1": {"class_type": "IPAdapterAdvanced", "inputs": None}},
        {"1": {"class_type": ["IPAdapterAdvanced"], "inputs": {}}},
        {"1": {"class_type": "KSampler", "inputs": {"model": ["no such node", 0]}}},
        {"1": {"inputs": {}}},
    ],
    ids=repr,
)
def test_odd_prompts_are_left_for_comfyui_to_refuse(prompt: Any) -> None:
    request = {"prompt": prompt, "extra_data": {"extra_pnginfo": {"workflow": saved("tiled")}}}
    assert replaced(request, INSTALLED) is request


@pytest.mark.parametrize("workflow", [None, [], {}, {"nodes": 1}, {"nodes": [None, {"id": 1}]}, {"definitions": 1}])
def test_odd_workflows_give_nothing(workflow: Any) -> None:
    request = placeholder("1", {"UNKNOWN": 1}, workflow)
    assert replaced(request, INSTALLED) is request


def test_links_to_nodes_that_are_not_there_stay_for_comfyui_to_refuse() -> None:
    inputs = ADVANCED | {"image": ["no such node", 0], "attn_mask": ["3"], "clip_vision": [3, 0]}
    assert alone("IPAdapterAdvanced", inputs)["inputs"] == inputs


def test_an_error_leaves_the_prompt_as_it_is_and_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import nodes

    monkeypatch.setattr(nodes, "NODE_CLASS_MAPPINGS", dict.fromkeys(INSTALLED))
    monkeypatch.setattr(prompts, "replaced", lambda request, installed: others if request is others else 1 / 0)
    ours, others = {"prompt": posted("tiled")}, {"prompt": {"1": {"class_type": "KSampler", "inputs": {}}}}
    with caplog.at_level(logging.ERROR):
        assert on_prompt(others) is others
        assert caplog.text == ""
        assert on_prompt(ours) is ours
    assert "Semblance: the prompt was left as it is" in caplog.text and "ZeroDivisionError" in caplog.text


def test_one_odd_node_leaves_the_others_replaced(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import nodes

    real, fault = prompts._replacement, "IPAdapterTiled"

    def odd(number: str, old: dict[str, Any], kind: str, *further: Any) -> dict[str, Any]:
        return 1 / 0 if kind == fault else real(number, old, kind, *further)

    monkeypatch.setattr(nodes, "NODE_CLASS_MAPPINGS", dict.fromkeys(INSTALLED))
    monkeypatch.setattr(prompts, "_replacement", odd)
    with caplog.at_level(logging.ERROR):
        made = on_prompt({"prompt": posted("tiled")})["prompt"]
    kinds = {node["class_type"] for node in made.values()}
    assert {kind for kind in kinds if kind.startswith("IPAdapter")} == {fault}
    assert "stays as it is" in caplog.text
