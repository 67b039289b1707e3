"""Every template runs on the real ComfyUI over its HTTP API, on tiny models.

Those for Flux, Qwen-Image and Z-Image have the text encoders of a tiny SDXL in the place of their own, of which there
are no tiny ones, and all of them a VAE of the small TAESD kind.
"""

from __future__ import annotations

import csv
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

from semblance.demo.run import in_the_style_of
from semblance.harness.server import ComfyUIServer
from semblance.host.evaluation.grid import GAP, MARGIN
from semblance.tests.support.speeds import slow_but
from semblance.tests.support.transformers import TRANSFORMERS
from semblance.tests.tiny_models import (
    CONTEXT_WIDTH,
    POOLED_WIDTH,
    adapter_state_dict,
    controlnet_state_dict,
    flux_adapter_state_dict,
    write_checkpoint,
    write_clip_vision,
    write_transformer,
    write_vae,
)

HERE = Path(__file__).parent
TEMPLATES = sorted(path.stem for path in HERE.glob("*.json"))
SIDE = 64
QUICK = (
    "adain_latent",
    "compare_strengths",
    "consistory",
    "consistory_personalise",
    "consistory_reuse",
    "each_block",
    "instantstyle_content_subtraction",
    "instantstyle_demo",
    "instantstyle_sd15",
    "score_and_pick",
    "one_node_style",
    "reference_style_demo",
    "reference_style_sdxl",
    "styledrop_masked",
    "styledrop_tune",
    "styleid",
    "styleid_demo",
)
"""The templates that are run at every change."""
ADAPTERS: dict[str, tuple[Any, ...]] = {
    "ip-adapter_sd15.safetensors": ("sd15", "base"),
    "ip-adapter_sdxl.safetensors": ("sdxl", "base"),
    "ip-adapter_sdxl_vit-h.safetensors": ("sdxl", "base", {"clip_width": 64}),
    "ip_plus_composition_sdxl.safetensors": ("sdxl", "plus"),
}
TEXT = CONTEXT_WIDTH["sdxl"]
LARGE: dict[str, tuple[str, dict[str, Any]]] = {
    "flux1-dev.safetensors": ("flux", {"context_in_dim": TEXT, "vec_in_dim": POOLED_WIDTH}),
    "qwen_image_fp8_e4m3fn.safetensors": ("qwen_image", {"joint_attention_dim": TEXT}),
    "z_image_turbo_bf16.safetensors": ("z_image", {"cap_feat_dim": TEXT}),
}
"""Tiny transformers in the place of large ones, told the widths of the texts that they are given."""


@pytest.fixture(scope="module")
def stocked(comfyui: ComfyUIServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyUIServer]:
    """The server with tiny files under the names the templates load."""
    checkpoints, adapters = comfyui.models("checkpoints"), comfyui.models("ipadapter")
    write_checkpoint("sdxl", checkpoints / "sd_xl_base_1.0.safetensors")
    write_checkpoint("sd15", checkpoints / "v1-5-pruned-emaonly-fp16.safetensors")
    for name, (kind, variant, *options) in ADAPTERS.items():
        save_file(adapter_state_dict(kind, variant, **(options[0] if options else {})), adapters / name)
    poses = comfyui.models("controlnet") / "controlnet-openpose-sdxl-1.0.safetensors"
    save_file(controlnet_state_dict("sdxl"), poses)
    write_clip_vision("h", comfyui.models("clip_vision") / "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors")
    write_clip_vision("g", comfyui.models("clip_vision") / "CLIP-ViT-bigG-14-laion2B-39B-b160k.safetensors")
    write_clip_vision("l", comfyui.models("clip_vision") / "clip_vision_l.safetensors")
    save_file(flux_adapter_state_dict("XLabs", text_width=TEXT), adapters / "ip_adapter.safetensors")
    for name, (kind, widths) in LARGE.items():
        family = TRANSFORMERS[kind]
        model = family.model(**widths)
        write_transformer(model, {**family.config, **widths}, comfyui.models("diffusion_models") / name)
    for name in ("ae.safetensors", "qwen_image_vae.safetensors"):
        write_vae(comfyui.models("vae") / name, channels=16)
    picture = tmp_path_factory.mktemp("input") / "example.png"
    Image.effect_noise((90, 60), 80).convert("RGB").save(picture)
    comfyui.add_input(picture)
    Image.linear_gradient("L").convert("RGB").save(picture.with_name("other.png"))
    comfyui.add_input(picture.with_name("other.png"))
    yield comfyui


PLAIN: dict[str, dict[str, Any]] = {
    "SemblanceInstantStyle": {"strength": 0.0},
    "PrimitiveFloat": {"value": 0.0},
    "SemblanceApplyAdapter": {"weight": 0.0},
    "SemblanceStyleID": {"strength": 0.0, "adain": 0.0},
    "SemblanceReferenceStyle": {"strength": 0.0},
    "SemblanceAdaINLatent": {"strength": 0.0},
    "SemblanceConsiStory": {"sharing": 0.0, "injection": 0.0},
    "SemblanceApplySubject": {"sharing": 0.0, "injection": 0.0},
    "SemblanceStyleDropGuider": {"strength": 0.0},
}
"""What turns each method off, by the type of its node."""
GRIDS = ("compare_strengths", "each_block")
"""Templates that save one picture of several, which has a size of its own."""
PICTURES = {
    "consistory": 4,
    "consistory_controlnet": 3,
    "consistory_personalise": 4,
    "consistory_reuse": 2 + 3,
    "consistory_two_subjects": 4,
    "score_and_pick": 2,
    "styledrop_masked": 4,
    "styledrop_rounds": 8,
    "styledrop_tune": 4,
}
"""How many pictures a template saves, where there is more than one: as many as it has scenes, or picks."""


def small(prompt: dict[str, Any], changes: dict[str, dict[str, Any]] | None = None) -> dict[str, Any]:
    """The template at a size and number of steps for tiny models, with inputs changed by node type."""
    fitting = {
        "EmptyLatentImage": {"width": SIDE, "height": SIDE},
        "EmptySD3LatentImage": {"width": SIDE, "height": SIDE},
        "ImageScale": {"width": SIDE, "height": SIDE},
        "KSampler": {"steps": 2},
        "BasicScheduler": {"steps": 2},
        "SemblanceTuneStyle": {"steps": 2},
        "SemblanceMaskedSampler": {"steps": 2},
        "SemblanceRecordSubject": {"steps": 2},
        "SemblanceInvertImage": {"steps": 4},
        "SemblanceInvertEditFriendly": {"steps": 2},
        "SemblancePickImages": {"floor": -1.0},
        "Style picture": {"image": "other.png"},
        "Picture 2": {"image": "other.png"},
        "Pose 2": {"image": "other.png"},
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


TEXT_LOADERS = ("CLIPLoader", "DualCLIPLoader")
"""Loaders of text encoders that have no tiny one here."""


def template(name: str) -> dict[str, Any]:
    """A template's API form, in which a tiny checkpoint gives the text encoders of large models."""
    prompt = json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))
    replaced = {number for number, node in prompt.items() if node["class_type"] in TEXT_LOADERS}
    if not replaced:
        return prompt
    checkpoint = {"ckpt_name": "sd_xl_base_1.0.safetensors"}
    loader = {"class_type": "CheckpointLoaderSimple", "inputs": checkpoint, "_meta": {"title": "Load Checkpoint"}}
    for node in prompt.values():
        for socket, value in node["inputs"].items():
            if isinstance(value, list) and value[0] in replaced:
                node["inputs"][socket] = ["loader", 1]
    return {"loader": loader, **{number: node for number, node in prompt.items() if number not in replaced}}


def plain(prompt: dict[str, Any]) -> dict[str, Any]:
    """The template with its methods off; of a story that is recorded, the scenes that its subject is applied to."""
    types = {node["class_type"] for node in prompt.values()}
    kept = {"SemblanceConsiStory"} if "SemblanceRecordSubject" in types else set[str]()
    kept |= {"SemblanceInstantStyle"} if "CreateList" in types else set()  # its strengths come from the list
    prompt = {number: node for number, node in prompt.items() if node["class_type"] != "SemblanceSubjectMasks"}
    return small(prompt, {kind: inputs for kind, inputs in PLAIN.items() if kind not in kept})


def pictures_of(server: ComfyUIServer, prompt: dict[str, Any]) -> Any:
    """All pictures a prompt saves; (pictures, height, width, 3)."""
    saved = server.outputs(server.run(prompt))
    return numpy.stack([numpy.asarray(Image.open(path).convert("RGB")).astype(int) for path in saved])


def test_there_is_an_api_form_for_every_template() -> None:
    published = (HERE.parent.parent / "workflows").glob("*.json")
    assert sorted(path.stem for path in published) == TEMPLATES


def test_comfyui_offers_the_templates_with_their_pictures(comfyui: ComfyUIServer) -> None:
    assert sorted(comfyui.get("/workflow_templates")["semblance"]) == TEMPLATES
    for name in TEMPLATES:
        with urlopen(f"{comfyui.url}/api/workflow_templates/semblance/{name}.jpg") as answer:
            assert Image.open(io.BytesIO(answer.read())).format == "JPEG"


def test_every_node_of_the_pack_is_in_a_template_that_is_run_at_every_change() -> None:
    ours = {node["class_type"] for name in TEMPLATES for node in template(name).values()}
    quick = {node["class_type"] for name in QUICK for node in template(name).values()}
    assert {node for node in ours if node.startswith("Semblance")} <= quick


@pytest.mark.parametrize("name", slow_but(TEMPLATES, QUICK))
def test_the_template_makes_pictures_that_strength_zero_does_not(stocked: ComfyUIServer, name: str) -> None:
    styled = pictures_of(stocked, small(template(name)))
    assert len(styled) == PICTURES.get(name, 1)
    assert name in GRIDS or styled.shape[1:] == (SIDE, SIDE, 3)
    assert styled.std() > 0
    assert numpy.abs(styled - pictures_of(stocked, plain(template(name)))).mean() > 0.05


def test_each_pose_guides_the_picture_of_its_own_scene(stocked: ComfyUIServer) -> None:
    """The third scene is no anchor, so no other looks at it."""
    name = "consistory_controlnet"
    given = pictures_of(stocked, small(template(name)))
    changed = pictures_of(stocked, small(template(name), {"Pose 3": {"image": "other.png"}}))
    difference = numpy.abs(given - changed).mean(axis=(1, 2, 3))
    assert difference[:2].max() < 0.05 < difference[2]


def test_each_strength_is_a_column_of_the_grid_and_a_line_of_the_table(stocked: ComfyUIServer) -> None:
    """The first strength is 0: no style picture changes its column."""
    styles = ("example.png", "other.png")
    prompts = [in_the_style_of(style, small(template("compare_strengths"))) for style in styles]
    for prompt in prompts:
        grid = next(node for node in prompt.values() if node["class_type"] == "SemblancePictureGrid")
        del grid["inputs"]["scores"]  # which change with the style picture, also under what it does not change
    one, other = (pictures_of(stocked, prompt)[0] for prompt in prompts)
    side = GAP + 256
    columns = [slice(MARGIN + side * number, MARGIN + side * number + 256) for number in range(4)]
    assert [int(numpy.abs(one[:, column] - other[:, column]).max()) > 0 for column in columns] == [0, 1, 1, 1]


def test_the_scores_of_each_strength_are_in_the_file_under_that_strength(stocked: ComfyUIServer) -> None:
    history = stocked.run(small(template("compare_strengths")))
    (saved,) = [file for node in history["outputs"].values() for file in node.get("files", [])]
    path = stocked.base_directory / "output" / saved["subfolder"] / saved["filename"]
    lines = list(csv.DictReader(io.StringIO(path.read_text("utf-8-sig"), newline="")))
    assert [line["scores"] for line in lines if line["what"] == "mean"] == ["0", "0.5", "1", "1.5"]
    assert len({line["style"] for line in lines if line["what"] == "value"}) == 12
