"""Style adapters over the real server: opened, applied, guided with, saved once more, and loaded as a LoRA."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import folder_paths
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from semblance.attention.adapters.style_adapter import FORMS
from semblance.harness.server import ComfyUIServer, Prompt, PromptFailed
from semblance.host.demo_models import load_demo
from semblance.host.files import STYLE_ADAPTERS
from semblance.host.pictures import tensor_of
from semblance.host.styledrop.adapter_files import save_adapter
from semblance.tests.support.style_adapters import style_adapter

STEPS = 6
SAMPLER = {"seed": 5, "steps": STEPS, "cfg": 5.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
ADVANCED = {"start": 0.0, "end": 1.0}


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def sampled(model: list[Any]) -> dict[str, Any]:
    """One picture of the demo model by KSampler."""
    texts = {"positive": ["prompt", 0], "negative": ["empty", 0], "latent_image": ["latent", 0]}
    return {
        "sample": node("KSampler", model=model, **texts, **SAMPLER),
        "decode": node("VAEDecode", samples=["sample", 0], vae=["demo", 2]),
        "picture": node("SaveImage", images=["decode", 0], filename_prefix="styledrop"),
    }


def begun(file: str | None = None) -> Prompt:
    """The demo model, its texts and a style adapter."""
    return {
        "demo": node("SemblanceLoadDemo", topology="SD 1.5"),
        "prompt": node("CLIPTextEncode", clip=["demo", 1], text="a red moon at the top, flat colours"),
        "empty": node("CLIPTextEncode", clip=["demo", 1], text=""),
        "latent": node("EmptyLatentImage", width=128, height=128, batch_size=1),
    } | ({} if file is None else {"load": node("SemblanceLoadStyleAdapter", file=file)})


def applying(file: str, strength: float = 1.0, **more: Any) -> Prompt:
    settings = {"strength": strength, "blocks": "all", "curve": "constant", **ADVANCED, **more}
    given = {"model": ["demo", 0], "style_adapter": ["load", 0]}
    return begun(file) | {"apply": node("SemblanceApplyStyleAdapter", **given, **settings)} | sampled(["apply", 0])


def guiding(file: str, style: float, text: float, **more: Any) -> Prompt:
    sides = {"positive": ["prompt", 0], "negative": ["empty", 0]} if text else {"positive": ["prompt", 0]}
    settings = {"strength": 1.0, "blocks": "all", "style_scale": style, "text_scale": text, **ADVANCED, **sides, **more}
    given = {"model": ["demo", 0], "style_adapter": ["load", 0]}
    parts = {"noise": ["noise", 0], "guider": ["guider", 0], "sampler": ["sampler", 0], "sigmas": ["sigmas", 0]}
    return begun(file) | {
        "guider": node("SemblanceStyleDropGuider", **given, **settings),
        "noise": node("RandomNoise", noise_seed=5),
        "sampler": node("KSamplerSelect", sampler_name="euler"),
        "sigmas": node("BasicScheduler", model=["demo", 0], scheduler="simple", steps=STEPS, denoise=1.0),
        "sample": node("SamplerCustomAdvanced", latent_image=["latent", 0], **parts),
        "decode": node("VAEDecode", samples=["sample", 0], vae=["demo", 2]),
        "picture": node("SaveImage", images=["decode", 0], filename_prefix="styledrop"),
    }


@pytest.fixture(scope="module")
def files(comfyui: ComfyUIServer) -> dict[str, str]:
    """The names of adapters of random weights for the demo model, by form, and of one that learned nothing."""
    folder = comfyui.models("semblance/adapters")
    model, names = load_demo("SD 1.5").model, dict[str, str]()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(folder_paths, "folder_names_and_paths", {STYLE_ADAPTERS: ([str(folder)], {".safetensors"})})
        for form in FORMS:
            adapter = style_adapter(model, form, size=0.3)
            shown = replace(adapter, thumbnail=torch.full((64, 64, 3), 200, dtype=torch.uint8))
            names[form] = save_adapter(shown, f"tuned/{form}", "1", "adapter").name
        names["fresh"] = save_adapter(style_adapter(model, size=0.0), "fresh", "1", "adapter").name
    save_file({"lora_unet_mid.lora_down.weight": torch.ones(2)}, folder / "lora.safetensors")
    return names


def pixels(comfyui: ComfyUIServer, prompt: Prompt) -> Tensor:
    from PIL import Image

    (path,) = comfyui.outputs(comfyui.run(prompt))
    with Image.open(path) as image:
        return tensor_of(image)


def apart(first: Tensor, second: Tensor) -> float:
    return float((first - second).abs().mean())


LEVEL = 1 / 255


@pytest.fixture(scope="module")
def plain(comfyui: ComfyUIServer) -> Tensor:
    return pixels(comfyui, begun() | sampled(["demo", 0]))


@pytest.mark.parametrize("form", FORMS)
def test_a_style_changes_the_picture_and_strength_zero_does_not(
    comfyui: ComfyUIServer, files: dict[str, str], plain: Tensor, form: str
) -> None:
    assert apart(pixels(comfyui, applying(files[form])), plain) > 3 * LEVEL
    assert torch.equal(pixels(comfyui, applying(files[form], strength=0.0)), plain)
    offered = comfyui.get("/object_info/SemblanceLoadStyleAdapter")["SemblanceLoadStyleAdapter"]
    assert files[form] in offered["input"]["required"]["file"][1]["options"]


@pytest.mark.parametrize("form", FORMS)
def test_the_guider_guides_with_a_style(
    comfyui: ComfyUIServer, files: dict[str, str], plain: Tensor, form: str
) -> None:
    assert apart(pixels(comfyui, guiding(files["fresh"], 2.0, 4.0)), plain) < LEVEL / 4
    weak, strong = (pixels(comfyui, guiding(files[form], style, 4.0)) for style in (0.0, 2.0))
    assert apart(strong, plain) > apart(weak, plain) > LEVEL
    assert pixels(comfyui, guiding(files[form], 1.0, 0.0)).shape == plain.shape


def test_a_lora_that_was_saved_does_in_the_hosts_loader_what_apply_does(
    comfyui: ComfyUIServer, files: dict[str, str]
) -> None:
    settings = {"name": "again", "contents": "adapter", "lora_file": True}
    saving = begun(files["lora"]) | {"save": node("SemblanceSaveStyleAdapter", style_adapter=["load", 0], **settings)}
    saving["show"] = node("PreviewAny", source=["save", 1])
    history = comfyui.run(saving)
    assert "again.safetensors in models/loras" in history["outputs"]["show"]["text"][0]
    assert history["outputs"]["save"]["images"], "the thumbnail is shown on the node"
    loader = node("LoraLoaderModelOnly", model=["demo", 0], lora_name="again.safetensors", strength_model=1.0)
    loaded = pixels(comfyui, begun() | {"lora": loader} | sampled(["lora", 0]))
    assert apart(loaded, pixels(comfyui, applying(files["lora"]))) < LEVEL / 100
    assert "lora key not loaded" not in comfyui.log


def test_what_cannot_be_turns_its_node_red(comfyui: ComfyUIServer, files: dict[str, str]) -> None:
    refused: list[tuple[Prompt, str, str]] = [
        (applying("lora.safetensors"), "load", "is a LoRA and not a style adapter"),
        (applying(files["lora"], end=0.5), "apply", "This style adapter is a LoRA"),
        (guiding(files["fresh"], 1.0, 0.0, text_scale=3.0), "guider", "none is connected"),
        (applying(files["fresh"]) | {"demo": node("SemblanceLoadDemo", topology="SDXL")}, "apply", "but this one is"),
    ]
    for prompt, red, sentence in refused:
        with pytest.raises(PromptFailed, match=sentence) as failure:
            comfyui.run(prompt)
        assert failure.value.node_id == red
