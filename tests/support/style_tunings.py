"""Tune Style on the tiny models, as ComfyUI calls it."""

from __future__ import annotations

from typing import Any

from semblance.nodes.tune_style import TuneStyle
from semblance.tests.tiny_models import make_clip, make_unet, make_vae

from .graphs import picture, run

MODEL, CLIP, VAE = make_unet("sd15"), make_clip("sd15"), make_vae()
DEFAULTS: dict[str, Any] = {
    "content_words": "a fox",
    "style_words": "in pencil",
    "form": "bottleneck",
    "width": 4,
    "blocks": {"blocks": "style"},
    "steps": 2,
    "learning_rate": 0.01,
    "batch": 1,
    "seed": 0,
    "flips": True,
    "gradient_checkpointing": False,
    "weight_decay": 0.0,
    "preview_every": 0,
    "preview_prompt": "",
    "preview_cfg": 4.0,
}


def tune_style(model: Any = MODEL, **inputs: Any) -> Any:
    """The NodeOutput, by the node as ComfyUI calls it: with every input as a list."""
    lists = {"pictures", "latents", "conditioning"}
    given = {"pictures": [picture(height=64, width=64)], "clip": CLIP, "vae": VAE, **DEFAULTS, **inputs}
    listed = {name: value if name in lists else [value] for name, value in given.items() if value is not None}
    listed["blocks"] = {name: [value] for name, value in given["blocks"].items()}
    return run(TuneStyle, model=[model], **listed)
