"""Tune Style over the real server: from a picture to an adapter, with its chart, its previews and its losses."""

from __future__ import annotations

from typing import Any

from semblance.harness.server import ComfyUIServer, Prompt


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


def test_a_graph_tunes_and_shows_chart_previews_and_losses(comfyui: ComfyUIServer) -> None:
    seen = []
    import os

    more = eval(os.environ.get("TUNE", "{}"))
    history = comfyui.run(tuning(**more), on_progress=seen.append)
    print(seen[-3:])
    print(history)
    import shutil

    shutil.copytree(comfyui.base_directory / "output", "/tmp/tuned", dirs_exist_ok=True)
    print(comfyui.log_tail)
