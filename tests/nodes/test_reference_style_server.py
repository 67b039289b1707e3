"""Reference Style over the real server: its presets and numbers as prompts carry them, and its red nodes."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
from PIL import Image

from semblance.harness.server import ComfyUIServer, Prompt, PromptFailed

SIDE = 64
NUMBERS = {
    "preset.reference_tokens": "instead",
    "preset.structure": 1,
    "preset.detail": 2,
    "preset.statistics": 1,
    "preset.value_statistics": 0.5,
    "preset.structure_start": 0,
    "preset.detail_start": 2.5,
    "preset.falloff": 1,
}
"""Whole numbers among them, as people write them into prompts."""


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


@pytest.fixture(scope="module")
def picture(comfyui: ComfyUIServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("input") / "reference.png"
    Image.effect_noise((SIDE, 48), 90).convert("RGB").save(path)
    comfyui.add_input(path)
    return path.name


def graph(picture: str, **changed: Any) -> Prompt:
    settings = {
        "preset": "custom",
        "strength": 1.0,
        "blocks": "preset",
        "start": 0.0,
        "end": 1.0,
        "curve": "constant",
        "reference_seed": 3,
        **NUMBERS,
        **changed,
    }
    return {
        "load": node("SemblanceLoadDemo", topology="SD 1.5"),
        "file": node("LoadImage", image=picture),
        "encode": node("VAEEncode", pixels=["file", 0], vae=["load", 2]),
        "both": node("LatentBatch", samples1=["encode", 0], samples2=["encode", 0]),
        "shown": node("CLIPTextEncode", clip=["load", 1], text="a star"),
        "style": node(
            "SemblanceReferenceStyle",
            model=["load", 0],
            reference=["both", 0],
            reference_prompt=["shown", 0],
            **settings,
        ),
        "positive": node("CLIPTextEncode", clip=["load", 1], text="a heart"),
        "negative": node("CLIPTextEncode", clip=["load", 1], text=""),
        "latent": node("EmptyLatentImage", width=SIDE, height=SIDE, batch_size=1),
        "sample": node(
            "KSampler",
            model=["style", 0],
            positive=["positive", 0],
            negative=["negative", 0],
            latent_image=["latent", 0],
            seed=1,
            steps=2,
            cfg=3.0,
            sampler_name="euler",
            scheduler="normal",
            denoise=1.0,
        ),
        "decode": node("VAEDecode", samples=["sample", 0], vae=["load", 2]),
        "save": node("SaveImage", images=["decode", 0], filename_prefix="reference_style"),
    }


def made(server: ComfyUIServer, prompt: Prompt) -> Any:
    (path,) = server.outputs(server.run(prompt))
    return numpy.asarray(Image.open(path).convert("RGB")).astype(int)


def test_numbers_blocks_and_presets_arrive_as_prompts_carry_them(comfyui: ComfyUIServer, picture: str) -> None:
    pictures = [
        made(comfyui, graph(picture, strength=0.0)),
        made(comfyui, graph(picture)),
        made(comfyui, graph(picture, **{"blocks": "custom", "blocks.weights": "output.11=1, output.10=1"})),
        made(comfyui, graph(picture, **{"curve": "custom", "curve.points": "0:1, 1:0.2"})),
        made(comfyui, graph(picture, preset="auto")),
        made(comfyui, graph(picture, preset="Visual Style Prompting")),
    ]
    for place, one in enumerate(pictures):
        assert all((one != other).any() for other in pictures[place + 1 :]), place
    once_more = graph(picture)
    once_more["save"]["inputs"]["filename_prefix"] = "again"
    assert (made(comfyui, once_more) == pictures[1]).all()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"preset": "Untwisting RoPE"}, "is not for Semblance demo (SD 1.5) models, for which there is 'StyleAligned'"),
        ({"preset": "none such"}, "The choice for preset is missing or not on offer. Choose one of: auto"),
        ({"blocks": "custom", "blocks.weights": "single.3=1"}, "There is no block called 'single.3' in this model"),
        ({"blocks": "custom", "blocks.weights": ""}, "No block is named"),
        ({"start": 0.8, "end": 0.2}, "must come before end"),
    ],
)
def test_wrong_choices_say_what_to_do(
    comfyui: ComfyUIServer, picture: str, changed: dict[str, Any], words: str
) -> None:
    with pytest.raises(PromptFailed) as failed:
        comfyui.run(graph(picture, **changed))
    assert words in str(failed.value)
