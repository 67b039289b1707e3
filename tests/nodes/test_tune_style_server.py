"""Tune Style over the real server: from a picture to an adapter, with its chart, its previews and its losses."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from semblance.harness.server import ComfyUIServer, History, Progress, Prompt, PromptInterrupted
from semblance.host.styledrop.adapter_files import CONTENTS


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def tuning(**more: Any) -> Prompt:
    """A picture of the demo model's, and an adapter tuned on it."""
    settings = {
        "content_words": "a star on the left",
        "style_words": ", ocean colours, dotted",
        "form": "bottleneck",
        "width": 8,
        "blocks": "all",
        "steps": 4,
        "learning_rate": 0.0,
        "batch": 1,
        "seed": 3,
        "flips": True,
        "gradient_checkpointing": True,
        "weight_decay": 0.0,
        "preview_every": 2,
        "preview_prompt": "a moon at the top",
        "preview_cfg": 4.0,
    }
    return {
        "demo": node("SemblanceLoadDemo", topology="SD 1.5"),
        "words": node("CLIPTextEncode", clip=["demo", 1], text="a star on the left, ocean colours, dotted"),
        "negative": node("CLIPTextEncode", clip=["demo", 1], text=""),
        "empty": node("EmptyLatentImage", width=128, height=128, batch_size=1),
        "sample": node(
            "KSampler",
            model=["demo", 0],
            positive=["words", 0],
            negative=["negative", 0],
            latent_image=["empty", 0],
            seed=1,
            steps=12,
            cfg=4.0,
            sampler_name="euler",
            scheduler="normal",
            denoise=1.0,
        ),
        "picture": node("VAEDecode", samples=["sample", 0], vae=["demo", 2]),
        "tune": node(
            "SemblanceTuneStyle",
            model=["demo", 0],
            pictures=["picture", 0],
            clip=["demo", 1],
            vae=["demo", 2],
            **settings | more,
        ),
        "chart": node("SaveImage", images=["tune", 2], filename_prefix="chart"),
        "previews": node("SaveImage", images=["tune", 3], filename_prefix="previews"),
        "graph": node("LossGraphNode", loss=["tune", 1], filename_prefix="loss"),
    }


def pictures_of(history: History, node_id: str) -> list[str]:
    return [image["filename"] for image in history["outputs"][node_id]["images"]]


def test_a_graph_tunes_and_shows_chart_previews_and_losses(comfyui: ComfyUIServer) -> None:
    seen: list[Progress] = []
    history = comfyui.run(tuning(), on_progress=seen.append)
    assert len(pictures_of(history, "tune")) == len(pictures_of(history, "chart")) == 1
    assert len(pictures_of(history, "previews")) == 4 and pictures_of(history, "graph")
    (report,) = history["outputs"]["tune"]["text"]
    assert "bottleneck of width 8 at 32 layers" in report and "4 steps, 4 in all" in report
    assert max(at.maximum for at in seen if at.node_id == "tune") == 4
    assert "Tuning takes about " in comfyui.log_tail


def test_a_tuned_lora_is_saved_opened_and_gone_on_with(comfyui: ComfyUIServer) -> None:
    settings = {"form": "lora", "blocks": "custom", "blocks.names": "output.9, output.10", "preview_every": 0}
    first = tuning(**settings)
    for name in ("chart", "previews", "graph"):
        del first[name]
    first["save"] = node(
        "SemblanceSaveStyleAdapter", style_adapter=["tune", 0], name="half", contents=CONTENTS[0], lora_file=True
    )
    comfyui.run(first)
    second = {name: part for name, part in first.items() if name != "save"}
    second["load"] = node("SemblanceLoadStyleAdapter", file="half.safetensors")
    second["tune"]["inputs"]["continue_from"] = ["load", 0]
    second["lora"] = node("LoraLoaderModelOnly", model=["demo", 0], lora_name="half.safetensors", strength_model=1.0)
    second["sample"]["inputs"]["model"] = ["lora", 0]
    second["chart"] = node("SaveImage", images=["tune", 2], filename_prefix="chart")
    (report,) = comfyui.run(second)["outputs"]["tune"]["text"]
    assert "lora of width 8 at 16 layers" in report and "4 steps, 8 in all" in report


def test_cancel_keeps_what_was_learnt(comfyui: ComfyUIServer) -> None:
    def cancel(at: Progress) -> None:
        if at.node_id == "tune" and at.value >= 2:
            threading.Thread(target=comfyui.interrupt).start()

    with pytest.raises(PromptInterrupted):
        comfyui.run(tuning(steps=1000, preview_every=0), on_progress=cancel)
    kept = comfyui.base_directory / "models" / "semblance" / "adapters" / "unfinished.safetensors"
    assert kept.is_file() and "What was learnt is kept as 'unfinished.safetensors'" in comfyui.log_tail
