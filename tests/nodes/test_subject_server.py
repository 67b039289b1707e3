"""A subject over the real server: recorded and saved by one prompt, opened and put into new scenes by the next."""

from __future__ import annotations

from typing import Any

import pytest

from semblance.harness.server import ComfyUIServer, Prompt, PromptFailed

STEPS = 4
SAMPLER = {"seed": 5, "steps": STEPS, "cfg": 4.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def story(scenes: str) -> Prompt:
    """The demo model and the prompts of some scenes."""
    return {
        "demo": node("SemblanceLoadDemo", topology="SDXL"),
        "prompts": node(
            "SemblanceStoryPrompts", clip=["demo", 1], subjects="a red moon", style="flat colours,", scenes=scenes
        ),
        "negative": node("ConditioningZeroOut", conditioning=["prompts", 0]),
        "latent": node("EmptyLatentImage", width=128, height=128, batch_size=["prompts", 2]),
    }


def recording(name: str, form: str) -> Prompt:
    settings = {"mode": "official", "anchors": 2, "sharing": 1.0, "dropout": 0.5, "query_blend": 1.0, "injection": 0.8}
    advanced = {"blend_until": 0.1, "inject_from": 0.1, "inject_until": 0.6, "free_u": False, "dropout_seed": 0}
    return story("at the top\nat the left") | {
        "story": node(
            "SemblanceConsiStory",
            model=["demo", 0],
            subject_words=["prompts", 1],
            mask_use="replace",
            **settings,
            **advanced,
        ),
        "record": node(
            "SemblanceRecordSubject",
            model=["story", 0],
            positive=["prompts", 0],
            negative=["negative", 0],
            latent_image=["latent", 0],
            vae=["demo", 2],
            **SAMPLER,
        ),
        "show": node("PreviewAny", source=["record", 2]),
        "save": node("SemblanceSaveSubject", subject=["record", 1], name=name, form=form, precision="float16"),
    }


def applying(file: str, **settings: Any) -> Prompt:
    """One new scene of the saved subject."""
    sampler = SAMPLER | {name: settings.pop(name) for name in list(settings) if name in SAMPLER}
    model = {"model": ["demo", 0]} if settings.pop("with_model", False) else {}
    shares = {"sharing": 1.0, "query_blend": 1.0, "injection": 0.8} | settings
    return story("at the bottom") | {
        "load": node("SemblanceLoadSubject", file=file, **model),
        "apply": node(
            "SemblanceApplySubject", model=["demo", 0], subject=["load", 0], subject_words=["prompts", 1], **shares
        ),
        "sample": node(
            "KSampler",
            model=["apply", 0],
            positive=["prompts", 0],
            negative=["negative", 0],
            latent_image=["latent", 0],
            **sampler,
        ),
        "decode": node("VAEDecode", samples=["sample", 0], vae=["demo", 2]),
        "picture": node("SaveImage", images=["decode", 0], filename_prefix="subject"),
    }


@pytest.fixture(scope="module")
def saved(comfyui: ComfyUIServer) -> dict[str, str]:
    """The names of the files that one subject got, by form."""
    names: dict[str, str] = {}
    for form in ("everything", "recipe"):
        history = comfyui.run(recording(f"moons/{form}", form))
        assert "2 anchors of 16x16, 4 steps" in history["outputs"]["show"]["text"][0]
        assert history["outputs"]["save"]["images"], "the thumbnail is shown on the node"
        names[form] = f"moons/{form}.safetensors"
    return names


def test_a_saved_subject_is_offered_and_makes_a_picture(comfyui: ComfyUIServer, saved: dict[str, str]) -> None:
    info = comfyui.get("/object_info/SemblanceLoadSubject")["SemblanceLoadSubject"]
    assert set(saved.values()) <= set(info["input"]["required"]["file"][1]["options"])
    made = comfyui.outputs(comfyui.run(applying(saved["everything"])))
    assert len(made) == 1


def test_a_recipe_makes_the_anchors_again_where_there_is_a_model(comfyui: ComfyUIServer, saved: dict[str, str]) -> None:
    history = comfyui.run(applying(saved["recipe"], with_model=True))
    assert len(comfyui.outputs(history)) == 1
    with pytest.raises(PromptFailed, match="is a recipe.*Connect the Semblance demo .SDXL. model") as failure:
        comfyui.run(applying(saved["recipe"]))
    assert failure.value.node_id == "load"


@pytest.mark.parametrize(
    ("settings", "red", "sentence"),
    [
        ({"steps": STEPS + 1}, "sample", "recorded in 4 steps from .* but the sampler takes 5 steps"),
        ({"scheduler": "karras"}, "sample", "Give the sampler the steps, scheduler and denoise of the recording"),
    ],
)
def test_another_ladder_turns_the_sampler_red(
    comfyui: ComfyUIServer, saved: dict[str, str], settings: dict[str, Any], red: str, sentence: str
) -> None:
    with pytest.raises(PromptFailed, match=sentence) as failure:
        comfyui.run(applying(saved["everything"], **settings))
    assert failure.value.node_id == red


def test_a_truncated_file_turns_the_loader_red(comfyui: ComfyUIServer, saved: dict[str, str]) -> None:
    whole = comfyui.models("semblance/subjects") / saved["everything"]
    cut = whole.with_name("cut.safetensors")
    cut.write_bytes(whole.read_bytes()[:-64])
    with pytest.raises(PromptFailed, match="cannot be read: the file is damaged.*Save the subject again") as failure:
        comfyui.run(applying("moons/cut.safetensors"))
    assert failure.value.node_id == "load"
