"""Show Patches tells what is on a MODEL: ours in order, other packs' by name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import comfy.patcher_extension
import pytest
import torch
from torch import Tensor

from semblance.harness.pinned import ROOT
from semblance.harness.server import ComfyUIServer
from semblance.nodes import NODES
from semblance.nodes.inspect import ShowPatches
from semblance.tests.support.graphs import encode, load_adapter, picture, run, styled
from semblance.tests.tiny_models import make_clip_vision, make_unet, with_lora


def shown(model: Any) -> list[str]:
    return run(ShowPatches, model)[0].split("\n")


def their_attention(query: Tensor, key: Tensor, value: Tensor, extra: dict[str, Any]) -> Tensor:
    raise AssertionError("looked at, not run")


class TheirReplacement:
    def __call__(self, query: Tensor, key: Tensor, value: Tensor, extra: dict[str, Any]) -> Tensor:
        raise AssertionError("looked at, not run")


def their_kernel(attention: Any, *inputs: Any, **named: Any) -> Tensor:
    raise AssertionError("looked at, not run")


def their_guidance(arguments: dict[str, Any]) -> Tensor:
    raise AssertionError("looked at, not run")


HERE = their_attention.__module__


@pytest.mark.parametrize(
    ("kind", "first"), [("sd15", "16 blocks with attention, 32"), ("sdxl", "11 blocks with attention, 140")]
)
def test_plain_model_carries_nothing(kind: str, first: str) -> None:
    lines = shown(make_unet(kind))
    assert first in lines[0] and lines[1:] == ["No Semblance patch."]


def test_ours_are_listed_in_the_order_of_the_nodes(models: Path) -> None:
    style = encode(load_adapter(models), make_clip_vision("h"), picture(1), picture(2))
    model = styled(make_unet("sd15"), style, blocks={"blocks": "style"}, strength=0.7)
    custom = {"blocks": "custom", "weights": "output.3=0.5, input.8=0"}
    model = styled(model, style, blocks=custom, start=0.1, end=0.5, mask=torch.ones(2, 64, 32))
    first, second = shown(model)[1:]
    name = "InstantStyle (sd15 base.safetensors)"
    assert first == f"1. {name}, strength 0.7, output.3=1, output.4=1, output.5=1"
    assert second == f"2. {name}, strength 1, output.3=0.5, 0.1 to 0.5, 2 masks of 32x64"


def test_branch_of_a_graph_shows_its_own_patches_only(models: Path) -> None:
    style = encode(load_adapter(models), make_clip_vision("h"), picture(1))
    plain = make_unet("sd15")
    once = styled(plain, style)
    styled(once, style)
    assert [sum(line[0].isdigit() for line in shown(model)) for model in (plain, once)] == [0, 1]


def test_other_packs_are_named_with_what_they_occupy(models: Path) -> None:
    model = with_lora(make_unet("sd15"))
    model.set_model_attn2_replace(their_attention, "output", 3)
    model.set_model_attn1_replace(TheirReplacement(), "middle", 0, 0)
    model.set_model_attn1_output_patch(their_attention)
    model.set_model_unet_function_wrapper(their_kernel)
    model.set_model_sampler_cfg_function(their_guidance)
    model.set_model_sampler_post_cfg_function(their_guidance)
    model.model_options["transformer_options"]["optimized_attention_override"] = their_kernel
    kind = comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL
    model.add_wrapper_with_key(kind, "their_key", their_kernel)
    model.add_object_patch("model_sampling", object())
    style = encode(load_adapter(models), make_clip_vision("h"), picture(1))
    model = styled(model, style)
    text = "\n".join(shown(model))
    for line in (
        "1. InstantStyle",
        f"Another node replaces attn2 of output.3: {HERE}.their_attention",
        f"Another node replaces attn1 of middle.0.0: {HERE}.TheirReplacement",
        f"Another node patches attn1_output_patch: {HERE}.their_attention",
        "Another node wraps diffusion_model (their_key)",
        f"Another node chooses the attention kernel: {HERE}.their_kernel",
        f"Another node sets model_function_wrapper: {HERE}.their_kernel",
        f"Another node sets sampler_cfg_function: {HERE}.their_guidance",
        f"Another node sets sampler_post_cfg_function: {HERE}.their_guidance",
        "Another node exchanges model_sampling: builtins.object",
        "128 weights are changed (LoRA or merge)",
    ):
        assert line in text
    assert "No Semblance patch" not in text and "semblance" not in text.replace("Semblance", "").replace(HERE, "")


def test_looking_changes_nothing(models: Path) -> None:
    model = styled(make_unet("sd15"), encode(load_adapter(models), make_clip_vision("h"), picture(1)))
    assert shown(model) == shown(model)


def test_text_stands_on_the_node() -> None:
    output = run(ShowPatches, make_unet("sd15"))
    assert output.ui.as_dict() == {"text": (output[0],)}


# The pack as a whole, as ComfyUI loads it

LOAD = """
import asyncio, gc, json, sys, time
host, pack = sys.argv[1:]
sys.path.insert(0, host)
import comfy.options
sys.argv = [sys.argv[0], "--cpu", "--disable-all-custom-nodes"]
comfy.options.enable_args_parsing()
import server, execution, nodes, folder_paths
before = set(sys.modules)
own = set(nodes.NODE_CLASS_MAPPINGS)
gc.freeze()  # the host's own objects: to look through them takes longer than to load the pack
start = time.process_time()
loaded = asyncio.run(nodes.load_custom_node(pack))
seconds = time.process_time() - start
added = sorted(name for name in set(sys.modules) - before if not name.startswith(pack.replace(".", "_x_")))
classes = sorted(set(nodes.NODE_CLASS_MAPPINGS) - own)
print(json.dumps([loaded, seconds, added, classes, dict(nodes.EXTENSION_WEB_DIRS)]))
"""


@pytest.mark.slow
def test_pack_loads_as_comfyui_loads_it_fast_and_without_heavy_imports(tmp_path: Path) -> None:
    from semblance.harness.pinned import find_host

    pack = tmp_path / "custom_nodes" / "any name"
    pack.parent.mkdir()
    pack.symlink_to(ROOT, target_is_directory=True)
    command = [sys.executable, "-c", LOAD, str(find_host()), str(pack)]
    bytecode = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path / "bytecode")}
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | bytecode
    for _ in "12":  # a user's second start finds the bytecode of the first
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr[-2000:]
    loaded, seconds, added, classes, web = json.loads(done.stdout.splitlines()[-1])
    assert loaded is True
    assert set(classes) == {node.define_schema().node_id for node in NODES}
    assert web == {"any name": str(pack / "web")}
    assert [name for name in added if name.startswith(("transformers", "diffusers", "torchvision", "scipy"))] == []
    assert seconds < 0.5


def test_server_serves_the_packs_help_and_translations(comfyui: ComfyUIServer) -> None:
    from urllib.request import urlopen

    translations = comfyui.get("/i18n")
    for node in NODES:
        name = node.define_schema().node_id
        for language in ("en", "zh"):
            with urlopen(f"{comfyui.url}/extensions/semblance/docs/{name}/{language}.md", timeout=60) as page:
                assert len(page.read()) > 100
            assert translations[language]["nodeDefs"][name]["display_name"]


def test_server_started_without_a_complaint_about_the_pack(comfyui: ComfyUIServer) -> None:
    info = comfyui.object_info()
    assert {node.define_schema().node_id for node in NODES} <= set(info)
    assert "IMPORT FAILED" not in comfyui.log and "Cannot import" not in comfyui.log
