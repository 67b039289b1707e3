"""Every template runs on the real ComfyUI over its HTTP API, on tiny models."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy
import pytest
from PIL import Image
from safetensors.torch import save_file

from semblance.hosting.server import ComfyUIServer
from semblance.tests.tiny_models import adapter_state_dict, write_checkpoint, write_clip_vision

HERE = Path(__file__).parent
TEMPLATES = sorted(path.stem for path in HERE.glob("*.json"))
SIDE = 64
ADAPTERS: dict[str, tuple[Any, ...]] = {
    "ip-adapter_sd15.safetensors": ("sd15", "base"),
    "ip-adapter_sdxl.safetensors": ("sdxl", "base"),
    "ip-adapter_sdxl_vit-h.safetensors": ("sdxl", "base", {"clip_width": 64}),
    "ip_plus_composition_sdxl.safetensors": ("sdxl", "plus"),
}


@pytest.fixture(scope="module")
def stocked(comfyui: ComfyUIServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyUIServer]:
    """The server with tiny files under the names the templates load."""
    checkpoints, adapters = comfyui.models("checkpoints"), comfyui.models("ipadapter")
    write_checkpoint("sdxl", checkpoints / "sd_xl_base_1.0.safetensors")
    write_checkpoint("sd15", checkpoints / "v1-5-pruned-emaonly-fp16.safetensors")
    for name, (kind, variant, *options) in ADAPTERS.items():
        save_file(adapter_state_dict(kind, variant, **(options[0] if options else {})), adapters / name)
    write_clip_vision("h", comfyui.models("clip_vision") / "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors")
    write_clip_vision("g", comfyui.models("clip_vision") / "CLIP-ViT-bigG-14-laion2B-39B-b160k.safetensors")
    picture = tmp_path_factory.mktemp("input") / "example.png"
    Image.effect_noise((90, 60), 80).convert("RGB").save(picture)
    comfyui.add_input(picture)
    Image.linear_gradient("L").convert("RGB").save(picture.with_name("other.png"))
    comfyui.add_input(picture.with_name("other.png"))
    yield comfyui


PLAIN: dict[str, dict[str, Any]] = {
    "SemblanceInstantStyle": {"strength": 0.0},
    "SemblanceStyleID": {"strength": 0.0, "adain": 0.0},
    "SemblanceAdaINLatent": {"strength": 0.0},
}
"""What turns each method off, by the type of its node."""


def small(prompt: dict[str, Any], changes: dict[str, dict[str, Any]] | None = None) -> dict[str, Any]:
    """The template at a size and number of steps for tiny models, with inputs changed by node type."""
    fitting = {
        "EmptyLatentImage": {"width": SIDE, "height": SIDE},
        "ImageScale": {"width": SIDE, "height": SIDE},
        "KSampler": {"steps": 2},
        "SemblanceInvertImage": {"steps": 4},
        "Style picture": {"image": "other.png"},
    }
    changes = fitting | (changes or {})
    return {
        node_id: {
            **node,
            "inputs": {
                **node["inputs"],
                **changes.get(node["class_type"], {}),
                **(changes.get(node["_meta"]["title"], {}) if node["class_type"] == "LoadImage" else {}),
            },
        }
        for node_id, node in prompt.items()
    }


def template(name: str) -> dict[str, Any]:
    return json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))


def picture_of(server: ComfyUIServer, prompt: dict[str, Any]) -> Any:
    (saved,) = server.outputs(server.run(prompt))
    return numpy.asarray(Image.open(saved).convert("RGB")).astype(int)


def test_there_is_an_api_form_for_every_template() -> None:
    published = (HERE.parent.parent / "workflows").glob("*.json")
    assert sorted(path.stem for path in published) == TEMPLATES


def test_comfyui_offers_the_templates_with_their_pictures(comfyui: ComfyUIServer) -> None:
    assert sorted(comfyui.get("/workflow_templates")["semblance"]) == TEMPLATES
    for name in TEMPLATES:
        with urlopen(f"{comfyui.url}/api/workflow_templates/semblance/{name}.jpg") as answer:
            assert Image.open(io.BytesIO(answer.read())).format == "JPEG"


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_template_makes_a_picture_that_strength_zero_does_not(stocked: ComfyUIServer, name: str) -> None:
    styled = picture_of(stocked, small(template(name)))
    plain = picture_of(stocked, small(template(name), PLAIN))
    assert styled.shape == (SIDE, SIDE, 3)
    assert styled.std() > 0
    assert numpy.abs(styled - plain).mean() > 0.05
